package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// maxReply bounds what is read of an answer, only so that the connection can be
// used again: the text is not looked at.
const maxReply = 64 << 10

var (
	errForgotten = errors.New("the sandbox was deleted")
	errGaveUp    = errors.New("no success in time")
)

// drain delivers a queue's notices one after another and ends when it is empty.
func (s *Sender) drain(sandboxID string, q *queue) {
	for {
		s.mu.Lock()
		if len(q.notices) == 0 {
			delete(s.queues, sandboxID)
			s.mu.Unlock()
			return
		}
		n := q.notices[0]
		ctx, cancel := context.WithCancelCause(s.base)
		n.cancel = cancel
		s.mu.Unlock()

		err := s.deliver(ctx, n)

		s.mu.Lock()
		q.notices[0], q.notices = nil, q.notices[1:]
		s.total--
		switch {
		case err == nil:
			s.stats.Sent++
		case errors.Is(context.Cause(ctx), errForgotten):
			s.stats.Forgotten++
		case s.base.Err() != nil:
			s.drop(n, "the gateway is closing")
		default:
			s.stats.Failed++
			s.log.Error("webhook event not delivered", "event", n.event, "sandboxId", n.sandboxID, "error", err)
		}
		s.mu.Unlock()
		cancel(nil)
	}
}

// deliver tries until the API has the notice, refuses it, or time is up.
func (s *Sender) deliver(ctx context.Context, n *notice) error {
	// Two lifetimes: a request that was sent may be acted on however it is broken
	// off here, so a drop ends the waits (ctx), not the request (whole). The next
	// event of the sandbox is sent when its end is known.
	whole, end := context.WithTimeoutCause(s.base, s.settings.GiveUpAfter, errGaveUp)
	defer end()
	ctx, cancel := context.WithTimeoutCause(ctx, s.settings.GiveUpAfter, errGaveUp)
	defer cancel()
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.MaxInterval = s.settings.FirstWait, s.settings.MaxWait
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := s.attempt(ctx, whole, n)
		if err != nil && ctx.Err() == nil {
			last = err
		}
		return struct{}{}, err
	},
		backoff.WithBackOff(waits),
		backoff.WithMaxElapsedTime(s.settings.GiveUpAfter),
		backoff.WithNotify(func(err error, wait time.Duration) {
			s.log.DebugContext(ctx, "webhook attempt failed", "event", n.event, "sandboxId", n.sandboxID, "error", err, "retryIn", wait)
		}),
	)
	if errors.Is(err, errGaveUp) && last != nil {
		return fmt.Errorf("%w: %w", errGaveUp, last)
	}
	return err
}

// attempt posts a notice once. It holds a slot only meanwhile, so that sandboxes
// that wait for a retry hold up nobody.
func (s *Sender) attempt(ctx, whole context.Context, n *notice) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	whole, cancel := context.WithTimeout(whole, s.settings.AttemptTimeout)
	defer cancel()
	now := s.settings.Now()
	body, err := n.body(now)
	if err != nil {
		return backoff.Permanent(err)
	}
	req, err := http.NewRequestWithContext(whole, http.MethodPost, s.endpoint, bytes.NewReader(body))
	if err != nil {
		return backoff.Permanent(fmt.Errorf("make the request: %w", err))
	}
	// By it the API tells a clock that is off from an event that had to wait.
	req.Header.Set("Date", now.UTC().Format(http.TimeFormat))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+s.settings.Token)
	resp, err := s.client.Do(req)
	if err != nil {
		if s.owned != nil {
			s.owned.CloseIdleConnections() // what silenced this connection silenced others
		}
		return fmt.Errorf("reach the API: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	// The status has come, so an answer that breaks off or never ends matters not.
	_, _ = io.CopyN(io.Discard, resp.Body, maxReply)
	if resp.Header.Get(sandbox.ErrorHeader) == string(sandbox.CodeClockSkew) && !n.skewed {
		n.skewed = true
		s.log.WarnContext(ctx, "the API refuses webhook events, as its clock and this machine's differ; they are tried again: set both by NTP",
			"event", n.event, "sandboxId", n.sandboxID, "itsTime", resp.Header.Get("Date"))
	}
	return s.judge(resp)
}

// judge says what an answer's status means for Retry.
func (s *Sender) judge(resp *http.Response) error {
	switch code := resp.StatusCode; {
	case code >= 200 && code < 300:
		return nil
	case code == http.StatusTooManyRequests || code >= 500:
		err := fmt.Errorf("the API answered %d", code)
		if wait, ok := retryAfter(resp.Header.Get("Retry-After")); ok {
			wait = min(wait, s.settings.MaxRetryAfter)
			// Everybody was told the same moment; not everybody should come then.
			wait += rand.N(wait/8 + s.settings.FirstWait) //nolint:gosec // jitter need not be secret
			return fmt.Errorf("%w: %w", err, &backoff.RetryAfterError{Duration: wait})
		}
		return err
	default:
		return backoff.Permanent(fmt.Errorf("the API refused it with %d", code))
	}
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(header string) (time.Duration, bool) {
	if n, err := strconv.Atoi(header); err == nil && n >= 0 {
		return time.Duration(min(n, 1<<20)) * time.Second, true
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(time.Until(at), 0), true
	}
	return 0, false
}

func newTransport(settings Settings) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: settings.AttemptTimeout, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    settings.AttemptTimeout,
		ResponseHeaderTimeout:  settings.AttemptTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    settings.Concurrency,
		IdleConnTimeout:        time.Minute,
	}
}
