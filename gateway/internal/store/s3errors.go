package store

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/minio/minio-go/v7"
)

// failed says what an error of the client means.
func (s *S3) failed(ctx context.Context, doing, key string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s %q: %w", doing, key, context.Cause(ctx))
	}
	var reply minio.ErrorResponse
	if !errors.As(err, &reply) || reply.StatusCode == 0 && reply.Code == "" { // it did not get as far as a reply
		return fmt.Errorf("%s %q at %s: %w: %w", doing, key, s.settings.Endpoint, ErrAway, err)
	}
	if known := s.outcome(reply); known != nil {
		return fmt.Errorf("%s %q: %w", doing, key, known)
	}
	if passing(reply) {
		return fmt.Errorf("%s %q: %w: %s answers %s", doing, key, ErrAway, s.settings.Endpoint, said(reply))
	}
	return refused(fmt.Errorf("%s %q: %s (%s)", doing, key, s.advice(reply), said(reply))) //nolint:err113 // a sentence for people; refused adds what programs need
}

// outcome returns the errors that are not the store's fault, or nil.
func (s *S3) outcome(reply minio.ErrorResponse) error {
	switch reply.Code {
	case minio.NoSuchKey:
		return ErrNotFound
	case minio.InvalidRange:
		return ErrRange
	case "KeyTooLongError", "ExistingObjectIsDirectory", "ObjectParentIsFile", "XMinioInvalidObjectName", "InvalidURI":
		return fmt.Errorf("%w: %s says: %s", ErrKey, s, said(reply))
	case minio.PreconditionFailed:
		return ErrChanged
	}
	if reply.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return ErrRange
	}
	return nil
}

// passing tells whether trying again can help.
func passing(reply minio.ErrorResponse) bool {
	switch reply.Code {
	case "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests",
		"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody", // damaged on the way
		"ConditionalRequestConflict", "OperationAborted", "NoSuchUpload": // somebody else's write was under way
		return true
	case notImplemented:
		return false
	}
	return reply.StatusCode >= http.StatusInternalServerError || reply.StatusCode == http.StatusTooManyRequests ||
		reply.StatusCode == http.StatusRequestTimeout
}

// advice is what somebody has to do, in a sentence.
func (s *S3) advice(reply minio.ErrorResponse) string {
	set := s.settings
	switch reply.Code {
	case minio.NoSuchBucket, minio.InvalidBucketName:
		return fmt.Sprintf("there is no bucket %q at %s: create it, or set the right name", set.Bucket, set.Endpoint)
	case "InvalidAccessKeyId", "InvalidAccessKeyID", "XAdminUserNotFound":
		return fmt.Sprintf("%s does not know the access key %q: set one that it gave out", set.Endpoint, set.AccessKey)
	case "SignatureDoesNotMatch":
		return fmt.Sprintf("the secret key does not belong to the access key %q at %s, or something in between changes requests", set.AccessKey, set.Endpoint)
	case minio.AccessDenied, "Forbidden", "AllAccessDisabled":
		return fmt.Sprintf("the access key %q may not do that in %s: let it read, write, list and delete there", set.AccessKey, s)
	case "RequestTimeTooSkewed":
		return "this machine's clock and the server's differ by too much: set the clock"
	case minio.InvalidRegion, "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException":
		return fmt.Sprintf("the region %q is not the one of %s: set the right one", set.Region, s)
	case notImplemented:
		return set.Endpoint + " cannot do that"
	}
	return set.Endpoint + " refuses"
}

// notImplemented is what servers say to headers that they do not know.
const notImplemented = "NotImplemented"

// saidLimit bounds how much of a server's words is repeated, in bytes.
const saidLimit = 300

func said(reply minio.ErrorResponse) string {
	message := reply.Message
	if len(message) > saidLimit {
		message = message[:saidLimit]
	}
	return fmt.Sprintf("%d %s: %s", reply.StatusCode, reply.Code, message)
}
