package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

func quick() store.Policy {
	return store.Policy{FirstWait: time.Millisecond, MaxWait: 5 * time.Millisecond}
}

// failing is a store of which every third call fails, in turn before, midway and
// with the reply lost, and a Retrier over it. What a Retrier does not try again
// does not fail: a body that cannot be rewound.
type failing struct {
	store.Store
	sure store.Store
}

func (f failing) Put(ctx context.Context, key string, body io.Reader, size int64, opts store.PutOptions) (store.Info, error) {
	if _, ok := body.(io.Seeker); ok {
		return f.Store.Put(ctx, key, body, size, opts)
	}
	return f.sure.Put(ctx, key, body, size, opts)
}

func flaky(inner store.Store) store.Store {
	faults := storetest.NewFaults(inner)
	for i := range 30_000 {
		faults.Fail(3*i+2, []storetest.Fault{storetest.Before, storetest.ReplyLost, storetest.Midway}[i%3])
	}
	policy := quick()
	policy.Tries = 30 // when many call at once, the third ones may all be one's
	return failing{store.NewRetrier(faults, policy), store.NewRetrier(inner, policy)}
}

func TestRetrierConformsOverADirectoryThatFails(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return flaky(newDirectory(t)) })
	storetest.RunAnyKey(t, func(t *testing.T) store.Store { return flaky(newDirectory(t)) })
}

func TestRetrierConformsOverS3ThatFails(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	open := prefixes(server)
	storetest.Run(t, func(t *testing.T) store.Store { return flaky(open(t)) })
}

// One fault of every kind at every call of a Put, with every condition: it
// succeeds, and what was there is replaced once.
func TestEveryFaultOfEveryPutIsSurvived(t *testing.T) {
	points := 0
	for _, fault := range []storetest.Fault{storetest.Before, storetest.Midway, storetest.ReplyLost} {
		for _, condition := range []string{"none", "if absent", "if match"} {
			for at := 1; ; at++ {
				inner := newDirectory(t)
				opts := store.PutOptions{Metadata: map[string]string{"mine": "yes"}}
				switch condition {
				case "if absent":
					opts.IfAbsent = true
				case "if match":
					opts.IfMatch = storetest.MustPut(t, inner, "x", []byte("before"), store.PutOptions{}).ETag
				}
				faults := storetest.NewFaults(inner)
				faults.Fail(at, fault)
				info, err := store.NewRetrier(faults, quick()).Put(t.Context(), "x", io.MultiReader(strings.NewReader("after")), -1, opts)
				if err != nil {
					t.Errorf("%s, %s at call %d: %v", condition, fault, at, err)
					break
				}
				got, now := storetest.MustGet(t, store.NewRetrier(inner, quick()), "x")
				if string(got) != "after" || now.ETag != info.ETag || info.SHA256 == "" || info.Size != 5 || len(now.Metadata) != 1 || len(info.Metadata) != 1 {
					t.Errorf("%s, %s at call %d: there is %q, %+v, and Put said %+v", condition, fault, at, got, now, info)
				}
				points++
				if faults.Calls() < at {
					break // the fault was not reached
				}
			}
		}
	}
	t.Logf("%d points were tried", points)
}

func TestALostReplyIsNotTakenForSomebodyElsesWrite(t *testing.T) {
	inner := newDirectory(t)
	faults := storetest.NewFaults(inner)
	r := store.NewRetrier(faults, quick())
	// Another gateway writes the same bytes before the second try.
	faults.Fail(1, storetest.Before)
	body := &hooked{Reader: strings.NewReader("same"), rewound: func() {
		storetest.MustPut(t, inner, "x", []byte("same"), store.PutOptions{IfAbsent: true})
	}}
	if _, err := r.Put(t.Context(), "x", body, 4, store.PutOptions{IfAbsent: true}); !errors.Is(err, store.ErrExists) {
		t.Errorf("the other's write was taken for ours: %v", err)
	}
}

// hooked is a body that tells when it is rewound for another try.
type hooked struct {
	*strings.Reader
	rewound func()
}

func (h *hooked) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekStart && h.rewound != nil {
		h.rewound()
		h.rewound = nil
	}
	return h.Reader.Seek(offset, whence)
}

func TestABodyThatCannotBeRewoundIsSentOnce(t *testing.T) {
	faults := storetest.NewFaults(newDirectory(t))
	faults.Fail(1, storetest.Midway)
	body := struct{ io.Reader }{bytes.NewReader(storetest.Content(1, 2<<20))}
	_, err := store.NewRetrier(faults, quick()).Put(t.Context(), "x", body, 2<<20, store.PutOptions{})
	if !errors.Is(err, store.ErrAway) || faults.Calls() != 1 {
		t.Errorf("after %d calls the error is %v", faults.Calls(), err)
	}
}

func TestTriesAreCountedAndSpreadOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := newDirectory(t)
		faults := storetest.NewFaults(inner)
		r := store.NewRetrier(faults, store.Policy{Tries: 4, FirstWait: time.Second, MaxWait: 2 * time.Second})
		faults.Down()
		for name, call := range map[string]func() error{
			"Head":         func() error { _, err := r.Head(t.Context(), "x"); return err },
			"Get":          func() error { _, _, err := r.Get(t.Context(), "x", store.Range{}); return err },
			"Delete":       func() error { return r.Delete(t.Context(), "x") },
			"DeletePrefix": func() error { return r.DeletePrefix(t.Context(), "x/") },
			"Probe":        func() error { return r.Probe(t.Context()) },
			"Put": func() error {
				_, err := r.Put(t.Context(), "x", strings.NewReader("x"), 1, store.PutOptions{})
				return err
			},
			"List": func() error {
				for _, err := range r.List(t.Context(), "") {
					return err
				}
				return nil
			},
		} {
			before, began := faults.Calls(), time.Now()
			err := call()
			if n := faults.Calls() - before; n != 4 || !errors.Is(err, store.ErrAway) {
				t.Errorf("%s: %d tries, and %v", name, n, err)
			}
			if took := time.Since(began); took < 2500*time.Millisecond || took > 7500*time.Millisecond {
				t.Errorf("%s: 4 tries took %v", name, took)
			}
		}
		faults.Up()
		if _, err := r.Head(t.Context(), "x"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the error is %v", err)
		}
	})
}

// stuck is a store that answers nothing until the context ends.
type stuck struct {
	store.Store
	running, most atomic.Int64
}

func (s *stuck) Head(ctx context.Context, _ string) (store.Info, error) {
	s.most.Store(max(s.most.Load(), s.running.Add(1)))
	defer s.running.Add(-1)
	<-ctx.Done()
	return store.Info{}, context.Cause(ctx)
}

func TestNoMoreCallsAreMadeAtOnceThanMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stuck{}
		r := store.NewRetrier(s, store.Policy{Concurrent: 3})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				if _, err := r.Head(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, store.ErrAway) {
					t.Errorf("after the caller's own deadline the error is %v", err)
				}
			})
		}
		group.Wait()
		if s.most.Load() != 3 {
			t.Errorf("%d calls were made at once, of 3 that may", s.most.Load())
		}
	})
}

func TestAReaderGoesOnWhereItBroke(t *testing.T) {
	want := storetest.Content(3, 1<<20)
	for _, c := range []struct {
		r    store.Range
		want []byte
	}{{store.Range{}, want}, {store.Range{Offset: 1000, Length: 5000}, want[1000:6000]}, {store.Range{Offset: 1 << 19}, want[1<<19:]}} {
		inner := newDirectory(t)
		storetest.MustPut(t, inner, "x", want, store.PutOptions{})
		faults := storetest.NewFaults(inner)
		for i, fault := range []storetest.Fault{storetest.Midway, storetest.ReplyLost, storetest.Before, storetest.Midway, storetest.Midway} {
			faults.Fail(i+1, fault)
		}
		body, _, err := store.NewRetrier(faults, quick()).Get(t.Context(), "x", c.r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(got, c.want) || faults.Calls() != 6 {
			t.Errorf("%+v: %d bytes of %d with %d calls, %v", c.r, len(got), len(c.want), faults.Calls(), err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAReaderDoesNotGoOnWithAnotherObject(t *testing.T) {
	for name, change := range map[string]func(s store.Store) error{
		"replaced": func(s store.Store) error {
			_, err := s.Put(context.Background(), "x", bytes.NewReader(storetest.Content(4, 1<<20)), 1<<20, store.PutOptions{})
			return err
		},
		"shortened": func(s store.Store) error {
			_, err := s.Put(context.Background(), "x", strings.NewReader("x"), 1, store.PutOptions{})
			return err
		},
		"deleted": func(s store.Store) error { return s.Delete(context.Background(), "x") },
	} {
		inner := newDirectory(t)
		storetest.MustPut(t, inner, "x", storetest.Content(3, 1<<20), store.PutOptions{})
		faults := storetest.NewFaults(inner)
		faults.Fail(1, storetest.Midway)
		body, _, err := store.NewRetrier(faults, quick()).Get(t.Context(), "x", store.Range{})
		if err != nil {
			t.Fatal(err)
		}
		if err := change(inner); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, body); !errors.Is(err, store.ErrChanged) || n != 1<<19 {
			t.Errorf("%s: after %d bytes the error is %v", name, n, err)
		}
		_ = body.Close()
	}
}

func TestAListingThatBreaksYieldsEverythingOnce(t *testing.T) {
	inner := newDirectory(t)
	var want []string
	for i := range 5 {
		want = append(want, fmt.Sprintf("l/%d", i))
		storetest.MustPut(t, inner, want[i], nil, store.PutOptions{})
	}
	faults := storetest.NewFaults(inner)
	for i, fault := range []storetest.Fault{storetest.Before, storetest.Midway, storetest.Before, storetest.ReplyLost} {
		faults.Fail(i+1, fault)
	}
	if got := storetest.MustList(t, store.NewRetrier(faults, quick()), "l/"); !slices.Equal(got, want) || faults.Calls() != 5 {
		t.Errorf("listed are %q with %d calls", got, faults.Calls())
	}
}

func TestWhatIsRefusedIsNotTriedAgain(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	settings := server.Settings()
	settings.SecretKey = "guessed-secret"
	faults := storetest.NewFaults(newS3(t, settings))
	r := store.NewRetrier(faults, quick())
	if _, err := r.Put(t.Context(), "x", strings.NewReader("x"), 1, store.PutOptions{}); !errors.Is(err, store.ErrRefused) || faults.Calls() != 1 {
		t.Errorf("%d calls, and %v", faults.Calls(), err)
	}
}

func TestAServerThatGoesAwayAndComesBackIsWaitedFor(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	settings := server.Settings()
	settings.PartSize = 5 << 20
	plain := newS3(t, settings)
	r := store.NewRetrier(plain, store.Policy{Tries: 40, FirstWait: 10 * time.Millisecond, MaxWait: 200 * time.Millisecond})
	content := storetest.Content(1, 30<<20)
	storetest.MustPut(t, r, "read", content, store.PutOptions{})

	// It goes away in the middle of an upload, and of a download.
	restarted := make(chan struct{})
	body := &cut{Reader: bytes.NewReader(content), at: 12 << 20, cut: func() {
		server.Stop(t)
		timer := time.AfterFunc(300*time.Millisecond, func() { server.Start(t); close(restarted) })
		t.Cleanup(func() {
			if timer.Stop() {
				t.Error("the server was not needed again")
			}
		})
	}}
	info, err := r.Put(t.Context(), "written", body, int64(len(content)), store.PutOptions{})
	if err != nil || info.Size != int64(len(content)) {
		t.Fatalf("putting while the server restarts: %v", err)
	}
	<-restarted
	if got, _ := storetest.MustGet(t, r, "written"); !bytes.Equal(got, content) {
		t.Error("what was put while the server restarted is something else")
	}
	reader, _, err := r.Get(t.Context(), "read", store.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	head := make([]byte, 1<<20)
	if _, err := io.ReadFull(reader, head); err != nil {
		t.Fatal(err)
	}
	server.Stop(t)
	if _, err := plain.Head(t.Context(), "read"); !errors.Is(err, store.ErrAway) || errors.Is(err, store.ErrRefused) {
		t.Errorf("while it is away: %v", err)
	}
	server.Start(t)
	rest, err := io.ReadAll(reader)
	if err != nil || !bytes.Equal(slices.Concat(head, rest), content) {
		t.Errorf("reading while the server restarts: %d bytes, %v", len(head)+len(rest), err)
	}
}

// cut calls a function when a body was read up to somewhere, once.
type cut struct {
	*bytes.Reader
	at  int
	cut func()
}

func (c *cut) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if c.at -= n; c.at <= 0 && c.cut != nil {
		c.cut()
		c.cut = nil
	}
	return n, err
}
