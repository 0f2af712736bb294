package store

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// Addressing is how a request names the bucket.
type Addressing string

const (
	// AddressingAuto is AddressingHost for AWS and the like, else AddressingPath.
	AddressingAuto Addressing = ""
	// AddressingPath is https://ENDPOINT/BUCKET/KEY.
	AddressingPath Addressing = "path"
	// AddressingHost is https://BUCKET.ENDPOINT/KEY.
	AddressingHost Addressing = "virtual-host"
)

// S3Settings say which bucket is a store.
type S3Settings struct {
	Endpoint   string // URL: http or https, a host and perhaps a port
	Region     string // found out from the server if empty; "auto" with R2
	Bucket     string // has to exist
	Prefix     string // of all keys: empty, or legal and ending in '/'
	Addressing Addressing
	AccessKey  string
	SecretKey  string
	// CAFile is a PEM file of certificates to trust besides the system's, for
	// an https endpoint. Empty for none.
	CAFile string
	// PartSize is how many bytes are sent in one request, and held in memory
	// for each Put whose body cannot be rewound: 16 MiB if 0, at least 5 MiB.
	PartSize int64
}

// check returns the endpoint, or a sentence about what is wrong with the settings.
func (s S3Settings) check() (*url.URL, error) {
	endpoint, err := url.Parse(s.Endpoint)
	if err != nil || endpoint.Scheme != "http" && endpoint.Scheme != "https" || endpoint.Host == "" ||
		strings.Trim(endpoint.Path, "/") != "" || endpoint.User != nil || endpoint.RawQuery != "" {
		return nil, errors.New("the S3 endpoint must be a URL of a scheme, a host and perhaps a port, as in https://s3.example.com") // without it: it could hold a secret
	}
	switch {
	case s.Bucket == "":
		return nil, errors.New("the S3 bucket is not set")
	case s.AccessKey == "" || s.SecretKey == "":
		return nil, errors.New("the S3 access key and secret key must both be set")
	case s.PartSize != 0 && s.PartSize < minPartSize:
		return nil, fmt.Errorf("the S3 part size is %d bytes, and servers want at least %d", s.PartSize, minPartSize)
	case !slices.Contains([]Addressing{AddressingAuto, AddressingPath, AddressingHost}, s.Addressing):
		return nil, fmt.Errorf("the S3 addressing %q is none of %q and %q", s.Addressing, AddressingPath, AddressingHost)
	case s.CAFile != "" && endpoint.Scheme != "https":
		return nil, errors.New("an S3 CA file is set, and the endpoint is not https")
	}
	if err := CheckPrefix(s.Prefix); err != nil {
		return nil, fmt.Errorf("the S3 prefix: %w", err)
	}
	return endpoint, nil
}

// transport makes the transport of the connections; patient ends what is silent.
func (s S3Settings) transport() (*http.Transport, error) {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       time.Minute,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: 10 * time.Second,
		DisableCompression:    true, // bytes come as they were stored
	}
	if s.CAFile == "" {
		return transport, nil
	}
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading the S3 CA file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("reading the system's certificates: %w", err)
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the S3 CA file %s holds no PEM certificate", s.CAFile)
	}
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return transport, nil
}
