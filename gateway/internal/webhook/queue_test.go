package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/agentpod/agentpod/gateway/internal/webhook"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// fake is a transport for tests in which time is synctest's. Its answer may
// wait on the request's context.
type fake struct {
	answer func(n int, event sandbox.Event, r *http.Request) (*http.Response, error)
	begin  time.Time

	mu   sync.Mutex
	seen []string
	at   []time.Duration
}

// reset forgets the attempts so far.
func (f *fake) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen, f.at = nil, nil
}

func (f *fake) attempts() ([]string, []time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen), slices.Clone(f.at)
}

func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	var body struct {
		Event sandbox.Event
		Data  map[string]any
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	f.mu.Lock()
	f.seen = append(f.seen, fmt.Sprintf("%v %s", body.Data["n"], body.Event))
	f.at = append(f.at, time.Since(f.begin))
	count := len(f.seen)
	f.mu.Unlock()
	return f.answer(count, body.Event, r)
}

func status(code int) (*http.Response, error) { return limited(code, "") }

func limited(code int, retryAfter string) (*http.Response, error) {
	resp := &http.Response{StatusCode: code, Header: http.Header{}, Body: http.NoBody}
	if retryAfter != "" {
		resp.Header.Set("Retry-After", retryAfter)
	}
	return resp, nil
}

func hang(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// bubble runs a test in synctest's time, with one request at a time.
func bubble(t *testing.T, settings webhook.Settings, answer func(int, sandbox.Event, *http.Request) (*http.Response, error), test func(*testing.T, *webhook.Sender, *fake)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: answer, begin: time.Now()}
		settings.URL, settings.Token, settings.Transport, settings.Concurrency = "http://api.test", token, f, 1
		s, err := webhook.New(settings, nil)
		if err != nil {
			t.Fatal(err)
		}
		test(t, s, f)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_ = s.Close(ctx)
	})
}

func n(i int) map[string]any { return map[string]any{"n": i} }

func TestAFailingEventIsRetriedUntilItSucceeds(t *testing.T) {
	bubble(t, webhook.Settings{}, func(n int, _ sandbox.Event, _ *http.Request) (*http.Response, error) {
		switch n {
		case 1:
			return nil, errors.New("connection refused")
		case 2, 3:
			return status(503)
		default:
			return status(200)
		}
	}, func(t *testing.T, s *webhook.Sender, f *fake) {
		s.Send("a", "", sandbox.EventSandboxCreated, n(1))
		time.Sleep(time.Minute) // synctest's minute
		synctest.Wait()
		if st := s.Stats(); st != (webhook.Stats{Sent: 1}) {
			t.Errorf("%+v", st)
		}
		_, at := f.attempts()
		if len(at) != 4 || at[3] > 10*time.Second || at[1] < 250*time.Millisecond {
			t.Errorf("attempts at %v", at)
		}
	})
}

func TestAnEventIsGivenUpInTheEnd(t *testing.T) {
	for name, answer := range map[string]func(int, sandbox.Event, *http.Request) (*http.Response, error){
		"the API fails": func(_ int, _ sandbox.Event, _ *http.Request) (*http.Response, error) { return status(500) },
		"the API hangs": func(_ int, _ sandbox.Event, r *http.Request) (*http.Response, error) { return hang(r) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, webhook.Settings{}, answer, func(t *testing.T, s *webhook.Sender, f *fake) {
				s.Send("a", "", sandbox.EventSandboxCreated, nil)
				time.Sleep(59 * time.Minute) // the last wait may be 45 s
				synctest.Wait()
				if st := s.Stats(); st.Queued != 1 {
					t.Errorf("given up too early: %+v", st)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if st := s.Stats(); st != (webhook.Stats{Failed: 1}) {
					t.Errorf("%+v", st)
				}
				if seen, _ := f.attempts(); len(seen) < 8 {
					t.Errorf("only %d attempts", len(seen))
				}
			})
		})
	}
}

func TestRetryAfterIsHonouredAndBounded(t *testing.T) {
	for name, tc := range map[string]struct {
		code        int
		header      string
		least, most time.Duration
	}{
		"seconds":                  {429, "20", 20 * time.Second, 24 * time.Second},
		"of a 503 too":             {503, "7", 7 * time.Second, 9 * time.Second},
		"a date":                   {429, "date", 30 * time.Second, 36 * time.Second},
		"far too long":             {429, "86400", time.Minute, 70 * time.Second},
		"nonsense, so the backoff": {429, "soon", 0, 2 * time.Second},
		"negative, so the backoff": {429, "-5", 0, 2 * time.Second},
		"more than fits":           {429, "999999999999999999", time.Minute, 70 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, webhook.Settings{}, func(n int, _ sandbox.Event, _ *http.Request) (*http.Response, error) {
				if n > 1 {
					return status(200)
				}
				header := tc.header
				if header == "date" {
					header = time.Now().Add(30 * time.Second).UTC().Format(http.TimeFormat)
				}
				return limited(tc.code, header)
			}, func(t *testing.T, s *webhook.Sender, f *fake) {
				s.Send("a", "", sandbox.EventSandboxCreated, nil)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if _, at := f.attempts(); len(at) != 2 || at[1] < tc.least || at[1] > tc.most {
					t.Errorf("attempts at %v, want the second within %v and %v", at, tc.least, tc.most)
				}
			})
		})
	}
}

func TestWhileASandboxWaitsForARetryOthersAreServed(t *testing.T) {
	bubble(t, webhook.Settings{}, func(_ int, event sandbox.Event, _ *http.Request) (*http.Response, error) {
		if event == sandbox.EventSandboxError {
			return status(500)
		}
		return status(200)
	}, func(t *testing.T, s *webhook.Sender, _ *fake) {
		s.Send("failing", "", sandbox.EventSandboxError, nil)
		synctest.Wait()
		s.Send("fine", "", sandbox.EventSandboxCreated, nil) // the only slot is free
		synctest.Wait()
		if st := s.Stats(); st != (webhook.Stats{Sent: 1, Queued: 1}) {
			t.Errorf("%+v", st)
		}
	})
}

func TestAFullQueueOfASandboxDropsItsOldestButNotTheDeletion(t *testing.T) {
	var up atomic.Bool
	bubble(t, webhook.Settings{MaxPerSandbox: 3}, func(_ int, _ sandbox.Event, _ *http.Request) (*http.Response, error) {
		if up.Load() {
			return status(200)
		}
		return status(500)
	}, func(t *testing.T, s *webhook.Sender, f *fake) {
		s.Send("a", "", sandbox.EventSandboxCreated, n(1))
		synctest.Wait() // under way, so it stays
		s.Send("a", "", sandbox.EventSandboxDeleted, n(2))
		for i := 3; i <= 6; i++ {
			s.Send("a", "", sandbox.EventSandboxError, n(i))
		}
		s.Send("other", "", sandbox.EventSandboxCreated, n(7))
		if st := s.Stats(); st != (webhook.Stats{Dropped: 3, Queued: 4}) {
			t.Errorf("%+v", st)
		}
		f.reset()
		up.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		if diff := cmp.Diff(map[string]bool{"1 sandbox.created": true, "2 sandbox.deleted": true, "6 sandbox.error": true, "7 sandbox.created": true}, set(f.attempts())); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAFullSenderDropsFromTheLongestQueue(t *testing.T) {
	var up atomic.Bool
	bubble(t, webhook.Settings{MaxQueued: 5}, func(_ int, _ sandbox.Event, _ *http.Request) (*http.Response, error) {
		if up.Load() {
			return status(200)
		}
		return status(500)
	}, func(t *testing.T, s *webhook.Sender, f *fake) {
		for i := range 4 {
			s.Send("noisy", "", sandbox.EventSessionMessage, n(i))
			synctest.Wait()
		}
		s.Send("quiet", "", sandbox.EventSandboxCreated, n(10))
		s.Send("new", "", sandbox.EventSandboxCreated, n(11))
		if st := s.Stats(); st != (webhook.Stats{Dropped: 1, Queued: 5}) {
			t.Errorf("%+v", st)
		}
		f.reset()
		up.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		want := map[string]bool{"0 session.message": true, "2 session.message": true, "3 session.message": true, "10 sandbox.created": true, "11 sandbox.created": true}
		if diff := cmp.Diff(want, set(f.attempts())); diff != "" {
			t.Error(diff)
		}
	})
}

func TestNothingOfADeletedSandboxReachesItsSuccessor(t *testing.T) {
	var up atomic.Bool
	bubble(t, webhook.Settings{}, func(_ int, _ sandbox.Event, r *http.Request) (*http.Response, error) {
		if up.Load() {
			return status(200)
		}
		return hang(r)
	}, func(t *testing.T, s *webhook.Sender, f *fake) {
		s.Send("a", "old", sandbox.EventSandboxCreated, n(1))
		synctest.Wait() // under way
		s.Send("a", "old", sandbox.EventSessionMessage, n(2))
		f.reset()
		up.Store(true)
		s.Drop("a", "old")
		s.Send("a", "old", sandbox.EventSandboxDeleted, n(3))
		s.Send("a", "new", sandbox.EventSandboxCreated, n(4))
		s.Send("a", "old", sandbox.EventSessionMessage, n(5)) // late
		s.Send("b", "old", sandbox.EventSandboxCreated, n(6)) // another sandbox
		s.Send("a", "new", sandbox.EventSessionMessage, n(7))
		synctest.Wait()
		for n := range set(f.attempts()) {
			if n != "6 sandbox.created" {
				t.Errorf("sent while the request of the old one is under way: %s", n)
			}
		}
		time.Sleep(15 * time.Second) // longer than an attempt may take
		synctest.Wait()
		want := map[string]bool{"3 sandbox.deleted": true, "4 sandbox.created": true, "6 sandbox.created": true, "7 session.message": true}
		if diff := cmp.Diff(want, set(f.attempts())); diff != "" {
			t.Error(diff)
		}
		if st := s.Stats(); st != (webhook.Stats{Sent: 4, Forgotten: 3}) {
			t.Errorf("%+v", st)
		}
		s.Drop("a", "old")
		s.Drop("never", "was")
	})
}

func TestADeletionThatWaitsSurvivesTheDrop(t *testing.T) {
	var up atomic.Bool
	bubble(t, webhook.Settings{}, func(_ int, _ sandbox.Event, _ *http.Request) (*http.Response, error) {
		if up.Load() {
			return status(200)
		}
		return status(500)
	}, func(t *testing.T, s *webhook.Sender, f *fake) {
		s.Send("a", "old", sandbox.EventSandboxDeleted, n(1))
		synctest.Wait() // it waits for a retry
		s.Send("a", "old", sandbox.EventSandboxError, n(2))
		s.Send("a", "old", sandbox.EventSandboxDeleted, n(3))
		s.Drop("a", "old")
		f.reset()
		up.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		seen, _ := f.attempts()
		if diff := cmp.Diff([]string{"1 sandbox.deleted", "3 sandbox.deleted"}, seen); diff != "" {
			t.Error(diff)
		}
	})
}

func TestCloseDeliversWhatWaits(t *testing.T) {
	bubble(t, webhook.Settings{}, func(n int, _ sandbox.Event, _ *http.Request) (*http.Response, error) {
		if n < 4 {
			return status(500)
		}
		return status(200)
	}, func(t *testing.T, s *webhook.Sender, _ *fake) {
		for i := range 5 {
			s.Send("a", "", sandbox.EventSandboxCreated, n(i))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		s.Send("a", "", sandbox.EventSandboxCreated, n(9))
		if st := s.Stats(); st != (webhook.Stats{Sent: 5, Dropped: 1}) {
			t.Errorf("%+v", st)
		}
	})
}

func TestCloseEndsAtItsDeadlineAndReportsTheLoss(t *testing.T) {
	bubble(t, webhook.Settings{}, func(_ int, _ sandbox.Event, r *http.Request) (*http.Response, error) {
		return hang(r)
	}, func(t *testing.T, s *webhook.Sender, f *fake) {
		for i := range 5 {
			s.Send("a", "", sandbox.EventSandboxCreated, n(i))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		err := s.Close(ctx)
		if err == nil || time.Since(f.begin) != 3*time.Second {
			t.Errorf("after %v: %v", time.Since(f.begin), err)
		}
		if st := s.Stats(); st != (webhook.Stats{Dropped: 5}) {
			t.Errorf("%+v", st)
		}
	})
}

func TestSendDoesNotWaitForAnything(t *testing.T) {
	bubble(t, webhook.Settings{}, func(_ int, _ sandbox.Event, r *http.Request) (*http.Response, error) {
		return hang(r)
	}, func(t *testing.T, s *webhook.Sender, f *fake) {
		for i := range 12_000 {
			s.Send(fmt.Sprint("box-", i%100), "", sandbox.EventSessionMessage, n(i))
		}
		if took := time.Since(f.begin); took != 0 {
			t.Errorf("took %v", took)
		}
		if st := s.Stats(); st.Queued != 10_000 || st.Dropped != 2_000 {
			t.Errorf("%+v", st)
		}
	})
}

func set(list []string, _ []time.Duration) map[string]bool {
	m := map[string]bool{}
	for _, s := range list {
		m[s] = true
	}
	return m
}
