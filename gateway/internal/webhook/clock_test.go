package webhook_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/webhook"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// strict is an API that refuses what a clock sends that is not the right one, and
// notes what it has taken.
type strict struct {
	taken []sandbox.Webhook
	tries int
}

func (s *strict) RoundTrip(r *http.Request) (*http.Response, error) {
	var got sandbox.Webhook
	if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
		return nil, err
	}
	sent, err := http.ParseTime(r.Header.Get("Date"))
	if err != nil {
		return nil, err
	}
	s.tries++
	if time.Since(sent).Abs() > 5*time.Minute || time.Until(got.Timestamp.Time) > 5*time.Minute {
		resp, err := limited(http.StatusServiceUnavailable, "30")
		resp.Header.Set(sandbox.ErrorHeader, string(sandbox.CodeClockSkew))
		return resp, err
	}
	s.taken = append(s.taken, got)
	return status(http.StatusOK)
}

func TestAnEventThatIsRefusedForAClockIsSentAgainInOrderWhenTheClockIsSet(t *testing.T) {
	for name, off := range map[string]time.Duration{"behind": -20 * time.Minute, "ahead": 20 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var offset atomic.Int64
				offset.Store(int64(off))
				api := &strict{}
				var logged bytes.Buffer
				s, err := webhook.New(webhook.Settings{
					URL: "http://api.test", Token: token, Transport: api,
					Now: func() time.Time { return time.Now().Add(time.Duration(offset.Load())) },
				}, slog.New(slog.NewTextHandler(&logged, nil)))
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				s.Send("a", "", sandbox.EventSandboxCreated, n(1))
				time.Sleep(time.Second) // synctest's time
				s.Send("a", "", sandbox.EventSandboxHibernated, n(2))
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if len(api.taken) != 0 || s.Stats().Queued != 2 {
					t.Fatalf("taken are %v, and %+v", api.taken, s.Stats())
				}
				if api.tries > 30 {
					t.Errorf("%d tries in ten minutes", api.tries)
				}
				if n := strings.Count(logged.String(), "clock"); n != 1 {
					t.Errorf("the log says %d times that it is a clock:\n%s", n, logged.String())
				}
				offset.Store(0)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				var events []sandbox.Event
				for i, got := range api.taken {
					events = append(events, got.Event)
					happened := began.Add(time.Duration(i) * time.Second)
					if got.Timestamp.Sub(happened).Abs() > time.Millisecond {
						t.Errorf("%s happened at %s by the right clock, and its timestamp is %s", got.Event, happened, got.Timestamp)
					}
				}
				if !slices.Equal(events, []sandbox.Event{sandbox.EventSandboxCreated, sandbox.EventSandboxHibernated}) {
					t.Errorf("taken are %v", events)
				}
				drain(t, s)
			})
		})
	}
}

func TestARetryWithAClockThatWasNotSetSaysTheSame(t *testing.T) {
	var bodies []string
	synctest.Test(t, func(t *testing.T) {
		f := transport(func(r *http.Request) (*http.Response, error) {
			var raw json.RawMessage
			if err := json.NewDecoder(r.Body).Decode(&raw); err != nil {
				return nil, err
			}
			bodies = append(bodies, string(raw))
			if len(bodies) < 5 {
				return status(http.StatusBadGateway)
			}
			return status(http.StatusOK)
		})
		s, err := webhook.New(webhook.Settings{URL: "http://api.test", Token: token, Transport: f}, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Send("a", "", sandbox.EventSandboxCreated, n(1))
		drain(t, s)
	})
	if len(bodies) != 5 || len(slices.Compact(bodies)) != 1 {
		t.Errorf("sent were %q", bodies)
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
