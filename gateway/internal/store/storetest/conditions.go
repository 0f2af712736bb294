package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/store"
)

func ifAbsent(t *testing.T, s store.Store) {
	first := MustPut(t, s, "c/x", []byte("first"), store.PutOptions{IfAbsent: true})
	_, err := s.Put(t.Context(), "c/x", strings.NewReader("second"), 6, store.PutOptions{IfAbsent: true})
	wantError(t, err, store.ErrExists)
	wantContent(t, s, "c/x", []byte("first"))
	if _, info := MustGet(t, s, "c/x"); info.ETag != first.ETag {
		t.Errorf("the ETag is %q, and was %q", info.ETag, first.ETag)
	}
	if err := s.Delete(t.Context(), "c/x"); err != nil {
		t.Fatal(err)
	}
	MustPut(t, s, "c/x", []byte("third"), store.PutOptions{IfAbsent: true})
	wantContent(t, s, "c/x", []byte("third"))
	_, err = s.Put(t.Context(), "c/y", strings.NewReader("x"), 1, store.PutOptions{IfAbsent: true, IfMatch: first.ETag})
	wantError(t, err, store.ErrInvalid)
}

func ifMatch(t *testing.T, s store.Store) {
	first := MustPut(t, s, "m/x", []byte("first"), store.PutOptions{})
	second := MustPut(t, s, "m/x", []byte("second"), store.PutOptions{IfMatch: first.ETag, Metadata: map[string]string{"a": "2"}})
	_, err := s.Put(t.Context(), "m/x", strings.NewReader("third"), 5, store.PutOptions{IfMatch: first.ETag})
	wantError(t, err, store.ErrChanged)
	got, info := MustGet(t, s, "m/x")
	if string(got) != "second" || info.ETag != second.ETag || info.Metadata["a"] != "2" {
		t.Errorf("after a refused replacement it is %q, %+v", got, info)
	}
	if err := s.Delete(t.Context(), "m/x"); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"m/x", "m/never"} {
		_, err = s.Put(t.Context(), key, strings.NewReader("x"), 1, store.PutOptions{IfMatch: second.ETag})
		wantError(t, err, store.ErrChanged)
		wantGone(t, s, key)
	}
}

const racers = 32

func createRace(t *testing.T, s store.Store) {
	for round := range 5 {
		race(t, s, fmt.Sprintf("race/%d", round), round, store.PutOptions{IfAbsent: true}, store.ErrExists)
	}
}

func replaceRace(t *testing.T, s store.Store) {
	info := MustPut(t, s, "race/x", []byte("before"), store.PutOptions{})
	for round := range 5 {
		race(t, s, "race/x", round, store.PutOptions{IfMatch: info.ETag}, store.ErrChanged)
		_, info = MustGet(t, s, "race/x")
	}
}

// race lets all put at once, and checks that one did and that it is theirs.
// What is put differs between rounds, for the same bytes may have the same ETag.
func race(t *testing.T, s store.Store, key string, round int, opts store.PutOptions, lost error) {
	t.Helper()
	errs := make([]error, racers)
	start := make(chan struct{})
	var group sync.WaitGroup
	for i := range racers {
		group.Go(func() {
			<-start
			content := racer(i, round)
			_, errs[i] = s.Put(context.Background(), key, strings.NewReader(content), int64(len(content)), opts)
		})
	}
	close(start)
	group.Wait()
	winners := []int{}
	for i, err := range errs {
		switch {
		case err == nil:
			winners = append(winners, i)
		case !errors.Is(err, lost):
			t.Errorf("a loser's error is %v", err)
		}
	}
	if len(winners) != 1 {
		t.Fatalf("%d won: %v", len(winners), winners)
	}
	wantContent(t, s, key, []byte(racer(winners[0], round)))
}

func racer(i, round int) string { return fmt.Sprintf("racer %d in round %d", i, round) }

// RunCounter tests that of many who replace at once each replaces what it has
// read. It is not for a store that loses replies: whoever replaces an object
// right after such a Put hides that it had its effect.
func RunCounter(t *testing.T, open func(t *testing.T) store.Store) {
	t.Helper()
	t.Run("a counter that 8 increment at once loses nothing", func(t *testing.T) { counterRace(t, open(t)) })
}

func counterRace(t *testing.T, s store.Store) {
	const workers, each = 8, 10
	MustPut(t, s, "counter", []byte("0"), store.PutOptions{})
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for range each {
				if err := increment(s, "counter"); err != nil {
					t.Errorf("incrementing: %v", err)
				}
			}
		})
	}
	group.Wait()
	wantContent(t, s, "counter", []byte(strconv.Itoa(workers*each)))
}

func increment(s store.Store, key string) error {
	for {
		body, info, err := s.Get(context.Background(), key, store.Range{})
		if err != nil {
			return err
		}
		raw, err := io.ReadAll(body)
		_ = body.Close()
		if errors.Is(err, store.ErrChanged) {
			continue
		}
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(string(raw))
		if err != nil {
			return err
		}
		next := strconv.Itoa(n + 1)
		_, err = s.Put(context.Background(), key, strings.NewReader(next), int64(len(next)), store.PutOptions{IfMatch: info.ETag})
		if !errors.Is(err, store.ErrChanged) {
			return err
		}
	}
}

func largeCondition(t *testing.T, s store.Store) {
	// The largest that goes, and one more byte, of known and unknown size.
	content := Content(9, store.ConditionalLimit+1)
	for _, size := range []int64{-1, store.ConditionalLimit + 1} {
		_, err := s.Put(t.Context(), "large", onlyReader(bytes.NewReader(content)), size, store.PutOptions{IfAbsent: true})
		wantError(t, err, store.ErrInvalid)
	}
	wantGone(t, s, "large")
	MustPut(t, s, "large", content[:store.ConditionalLimit], store.PutOptions{IfAbsent: true})
	_, err := s.Put(t.Context(), "large", onlyReader(bytes.NewReader(content[:20<<20])), -1, store.PutOptions{IfAbsent: true})
	wantError(t, err, store.ErrExists)
	wantContent(t, s, "large", content[:store.ConditionalLimit])
}

func readersKeep(t *testing.T, s store.Store) {
	before := Content(10, 3<<20)
	MustPut(t, s, "kept", before, store.PutOptions{})
	body, _, err := s.Get(t.Context(), "kept", store.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	head := make([]byte, 1000)
	if _, err := io.ReadFull(body, head); err != nil {
		t.Fatal(err)
	}
	MustPut(t, s, "kept", Content(11, 3<<20), store.PutOptions{})
	rest, err := io.ReadAll(body)
	if err != nil && !errors.Is(err, store.ErrChanged) && !errors.Is(err, store.ErrAway) {
		t.Fatalf("a reader whose object was replaced: %v", err)
	}
	if err == nil && !bytes.Equal(slices.Concat(head, rest), before) {
		t.Error("a reader got a mixture of two objects")
	}
}

func contexts(t *testing.T, s store.Store) {
	MustPut(t, s, "x", Content(12, 1<<20), store.PutOptions{})
	cause := errors.New("the caller went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	body, _, err := s.Get(ctx, "x", store.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	cancel(cause)
	if _, err := io.ReadAll(io.MultiReader(body, body)); !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
		t.Errorf("reading: the error is %v", err)
	}
	canceled := func(doing string, err error) {
		t.Helper()
		if !errors.Is(err, cause) && !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrAway) {
			t.Errorf("%s: the error is %v", doing, err)
		}
	}
	_, err = s.Put(ctx, "y", strings.NewReader("y"), 1, store.PutOptions{})
	canceled("putting", err)
	_, _, err = s.Get(ctx, "x", store.Range{})
	canceled("getting", err)
	_, err = s.Head(ctx, "x")
	canceled("looking", err)
	canceled("deleting", s.Delete(ctx, "x"))
	canceled("deleting a prefix", s.DeletePrefix(ctx, "x/"))
	wantGone(t, s, "y")
	wantContent(t, s, "x", Content(12, 1<<20))
	// While the body is read.
	ctx, cancel = context.WithCancelCause(t.Context())
	_, err = s.Put(ctx, "y", readerFunc(func(p []byte) (int, error) { cancel(cause); return len(p), nil }), -1, store.PutOptions{})
	canceled("putting without an end", err)
	wantGone(t, s, "y")
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func probes(t *testing.T, s store.Store) {
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if left := MustList(t, s, ""); len(left) != 0 {
		t.Errorf("a probe left %q", left)
	}
}
