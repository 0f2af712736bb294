package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/linktest"
)

// recordTime is the deadline that lifecycle sets for writing a record.
const recordTime = 10 * time.Second

// linked returns a store over a link to a server, with some idle connections.
func linked(t *testing.T, server *storetest.Server, prefix string) (*linktest.Link, store.Store) {
	t.Helper()
	link := linktest.Start(t, "tcp", server.Address)
	settings := server.Settings()
	settings.Endpoint = "http://" + link.Address()
	settings.Prefix, settings.PartSize = prefix, 5<<20
	r := store.NewRetrier(newS3(t, settings), store.Policy{})
	crowd(t, r)
	return link, r
}

// crowd makes requests at the same time, on as many connections.
func crowd(t *testing.T, s store.Store) {
	t.Helper()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if _, err := s.Head(t.Context(), "nothing"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("the error is %v", err)
			}
		})
	}
	group.Wait()
}

// call is something to do while a store is silent, and what there must be then.
type call struct {
	within time.Duration
	do     func(ctx context.Context, s store.Store, fallSilent func()) error
	object string // that was written
	want   []byte
}

func calls(match store.ETag, large []byte) map[string]call {
	small := []byte("a record of 1 KB" + strings.Repeat(".", 1008))
	put := func(key string, content []byte, opts store.PutOptions, within time.Duration) call {
		return call{within, func(ctx context.Context, s store.Store, fallSilent func()) error {
			fallSilent()
			_, err := s.Put(ctx, key, bytes.NewReader(content), int64(len(content)), opts)
			return err
		}, key, content}
	}
	read := func(ctx context.Context, s store.Store, key string, want []byte, begun func()) error {
		body, _, err := s.Get(ctx, key, store.Range{})
		if err != nil {
			return err
		}
		defer body.Close()
		head := make([]byte, len(want)/10)
		if _, err := io.ReadFull(body, head); err != nil {
			return err
		}
		begun()
		rest, err := io.ReadAll(body)
		if err == nil && !bytes.Equal(slices.Concat(head, rest), want) {
			err = fmt.Errorf("%d bytes came that are something else", len(head)+len(rest))
		}
		return err
	}
	return map[string]call{
		"a small put":     put("small", small, store.PutOptions{}, recordTime),
		"a put if absent": put("absent", small, store.PutOptions{IfAbsent: true}, recordTime),
		"a put if match":  put("there", small, store.PutOptions{IfMatch: match}, recordTime),
		"a read": {within: recordTime, do: func(ctx context.Context, s store.Store, fallSilent func()) error {
			fallSilent()
			return read(ctx, s, "there", []byte("before"), func() {})
		}},
		"a listing": {within: recordTime, do: func(ctx context.Context, s store.Store, fallSilent func()) error {
			fallSilent()
			n := 0
			for _, err := range s.List(ctx, "") {
				if err != nil {
					return err
				}
				n++
			}
			if n != 2 {
				return fmt.Errorf("%d objects are listed, of 2", n)
			}
			return nil
		}},
		"a delete": {within: recordTime, do: func(ctx context.Context, s store.Store, fallSilent func()) error {
			fallSilent()
			if err := s.Delete(ctx, "there"); err != nil {
				return err
			}
			if _, err := s.Head(ctx, "there"); !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("after the delete: %w", err)
			}
			return nil
		}},
		"a delete of a prefix": {within: recordTime, do: func(ctx context.Context, s store.Store, fallSilent func()) error {
			fallSilent()
			return s.DeletePrefix(ctx, "many/")
		}},
		"a large read": {within: time.Minute, do: func(ctx context.Context, s store.Store, fallSilent func()) error {
			return read(ctx, s, "large", large, fallSilent)
		}},
		"a large put that can be rewound": put("again", large, store.PutOptions{}, time.Minute),
		"a large put with a condition":    put("new", large, store.PutOptions{IfAbsent: true}, time.Minute),
		"a large put that cannot be rewound": {time.Minute, func(ctx context.Context, s store.Store, fallSilent func()) error {
			body := &cut{Reader: bytes.NewReader(large), at: len(large) / 2, cut: fallSilent}
			_, err := s.Put(ctx, "streamed", struct{ io.Reader }{body}, int64(len(large)), store.PutOptions{})
			return err
		}, "streamed", large},
		"a put of one part that cannot be rewound": {time.Minute, func(ctx context.Context, s store.Store, fallSilent func()) error {
			body := &cut{Reader: bytes.NewReader(large[:2<<20]), at: 1, cut: fallSilent}
			_, err := s.Put(ctx, "part", struct{ io.Reader }{body}, 2<<20, store.PutOptions{})
			return err
		}, "part", large[:2<<20]},
	}
}

func TestASilenceOfTheStoreIsSurvivedWithinACallersDeadline(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	large := storetest.Content(1, 11<<20)
	var group sync.WaitGroup // not subtests in parallel: most of the time all of them wait
	var check []func()
	for kind, fallSilent := range map[string]func(*linktest.Link){
		"silent": (*linktest.Link).Silence, "replies lost": (*linktest.Link).LoseReplies,
	} {
		for _, lasts := range []time.Duration{time.Second, 5 * time.Second} {
			for what := range calls("", large) {
				name := fmt.Sprintf("%s for %s, %s", kind, lasts, what)
				link, s := linked(t, server, strings.ReplaceAll(name, " ", "-")+"/")
				match := storetest.MustPut(t, s, "there", []byte("before"), store.PutOptions{}).ETag
				storetest.MustPut(t, s, "large", large, store.PutOptions{})
				c := calls(match, large)[what]
				spoke := make(chan struct{})
				group.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), c.within)
					defer cancel()
					err := c.do(ctx, s, func() {
						fallSilent(link)
						time.AfterFunc(lasts, func() { link.Speak(); close(spoke) })
					})
					if err != nil {
						t.Errorf("%s: %v", name, err)
					}
				})
				check = append(check, func() {
					<-spoke
					if c.object == "" || t.Failed() {
						return
					}
					if got, info := storetest.MustGet(t, s, c.object); !bytes.Equal(got, c.want) || len(info.Metadata) != 0 {
						t.Errorf("%s: %q holds %d bytes of %d, with %v", name, c.object, len(got), len(c.want), info.Metadata)
					}
				})
			}
		}
	}
	group.Wait()
	for _, c := range check {
		c()
	}
}

func TestNoLaterRequestMeetsAConnectionThatDiedSilently(t *testing.T) {
	link, s := linked(t, storetest.StartServer(t, storetest.ServerOptions{}), "")
	link.Silence()
	speaking := time.AfterFunc(time.Second, link.Speak)
	defer speaking.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), recordTime)
	defer cancel()
	if _, err := s.Put(ctx, "x", strings.NewReader("x"), 1, store.PutOptions{IfAbsent: true}); err != nil {
		t.Fatal(err)
	}
	crowd(t, s)
	if n := link.Late(); n != 0 {
		t.Errorf("%d requests after the silence were sent on connections that it had cut", n)
	}
}

func TestACallersDeadlineTakesTheSilentConnectionsWithIt(t *testing.T) {
	link, s := linked(t, storetest.StartServer(t, storetest.ServerOptions{}), "")
	link.Silence()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := s.Head(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the error is %v", err)
	}
	link.Speak()
	crowd(t, s)
	if n := link.Late(); n != 0 {
		t.Errorf("%d requests after the silence were sent on connections that it had cut", n)
	}
}

// mute runs a test, in synctest's time, with a server that accepts everything and
// answers nothing. connections counts those that were made to it.
func mute(t *testing.T, tries int, test func(t *testing.T, s store.Store, connections func() int)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newS3(t, store.S3Settings{Endpoint: "http://store.test", Region: "auto", Bucket: "bucket", AccessKey: "a", SecretKey: "s"})
		made := 0
		s.Dial(func() net.Conn {
			made++
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				_, _ = io.Copy(io.Discard, theirs)
			}()
			return ours
		})
		test(t, store.NewRetrier(s, store.Policy{Tries: tries}), func() int { return made })
	})
}

func TestEachTryOfASilentServerIsMorePatientOnANewConnection(t *testing.T) {
	mute(t, 3, func(t *testing.T, s store.Store, connections func() int) {
		began := time.Now()
		_, err := s.Head(t.Context(), "x")
		if !errors.Is(err, store.ErrAway) || !strings.Contains(err.Error(), "nothing moved for too long: 8s") {
			t.Errorf("the error is %v", err)
		}
		if took := time.Since(began); took < 14*time.Second || took > 15*time.Second || connections() != 3 {
			t.Errorf("three tries took %v and %d connections", took, connections())
		}
	})
}

func TestADeadlineOfTenSecondsHasThreeTries(t *testing.T) {
	for name, put := range map[string]bool{"Head": false, "Put": true} {
		t.Run(name, func(t *testing.T) {
			mute(t, 0, func(t *testing.T, s store.Store, connections func() int) {
				ctx, cancel := context.WithTimeout(t.Context(), recordTime)
				defer cancel()
				var err error
				if put {
					_, err = s.Put(ctx, "x", bytes.NewReader(make([]byte, 64<<10)), 64<<10, store.PutOptions{IfAbsent: true})
				} else {
					_, err = s.Head(ctx, "x")
				}
				if !errors.Is(err, context.DeadlineExceeded) || connections() != 3 {
					t.Errorf("%d tries, and %v", connections(), err)
				}
			})
		})
	}
}

// slowly is a body of which each byte takes its time.
type slowly struct {
	size, at int64
	pause    time.Duration
}

func (s *slowly) Read(p []byte) (int, error) {
	if s.at == s.size {
		return 0, io.EOF
	}
	time.Sleep(s.pause) // synctest's time
	s.at++
	p[0] = 'x'
	return 1, nil
}

func (s *slowly) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekStart {
		s.at = offset
	}
	return s.at, nil
}

func TestACallersSlowBodyIsNotTheServersSilence(t *testing.T) {
	mute(t, 1, func(t *testing.T, s store.Store, _ func() int) {
		began := time.Now()
		body := &slowly{size: 10, pause: 50 * time.Second}
		if _, err := s.Put(t.Context(), "x", body, 10, store.PutOptions{}); !errors.Is(err, store.ErrAway) {
			t.Errorf("the error is %v", err)
		}
		// It is read twice: for its hash, and to be sent.
		if took := time.Since(began); took < 1002*time.Second || took > 1003*time.Second {
			t.Errorf("a body of 500 s, and then silence, took %v", took)
		}
	})
}
