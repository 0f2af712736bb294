package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/agentpod/agentpod/gateway/internal/store"
)

// Run runs the conformance suite. open makes an empty store for each part of it.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	t.Helper()
	for _, part := range []struct {
		name string
		test func(t *testing.T, s store.Store)
	}{
		{"what is put is got back with its bytes size and hash", putAndGet},
		{"a put replaces what was there", replace},
		{"a body of unknown size is taken to its end", unknownSize},
		{"a body that is not as long as was said stores nothing", wrongSize},
		{"an error of the body's is returned and nothing is stored", failingBody},
		{"ranges are parts of the object", ranges},
		{"metadata and content type come back", metadata},
		{"what cannot be metadata is refused", badMetadata},
		{"keys of all sorts are kept apart", keys},
		{"what is not a key is refused before anything is done", badKeys},
		{"a listing has every object under a prefix", list},
		{"2500 objects are listed and deleted by their prefix", listMany},
		{"a listing ends when its caller or its context does", listEnds},
		{"objects can be deleted while they are listed", deleteInList},
		{"deleting is idempotent and hits one object", deletes},
		{"deleting a prefix leaves its neighbours", deletePrefix},
		{"create-if-absent creates once", ifAbsent},
		{"replace-if-match replaces what it knows", ifMatch},
		{"of 32 who create at once one wins", createRace},
		{"of 32 who replace at once one wins", replaceRace},
		{"a condition on a large body is refused", largeCondition},
		{"a reader goes on with what it began", readersKeep},
		{"a context that is done ends a call", contexts},
		{"a probe finds nothing wrong and leaves nothing", probes},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, open(t)) })
	}
}

// Content returns n bytes that do not compress, the same for the same seed.
func Content(seed uint64, n int) []byte {
	content := make([]byte, n)
	var key [32]byte
	key[0] = byte(seed)
	_, _ = rand.NewChaCha8(key).Read(content) // never fails
	return content
}

// MustPut puts content, and fails the test if that fails.
func MustPut(t testing.TB, s store.Store, key string, content []byte, opts store.PutOptions) store.Info {
	t.Helper()
	info, err := s.Put(context.Background(), key, bytes.NewReader(content), int64(len(content)), opts)
	if err != nil {
		t.Fatalf("putting %q: %v", key, err)
	}
	return info
}

// MustGet gets an object, and fails the test if that fails.
func MustGet(t testing.TB, s store.Store, key string) ([]byte, store.Info) {
	t.Helper()
	return mustGetRange(t, s, key, store.Range{})
}

func mustGetRange(t testing.TB, s store.Store, key string, r store.Range) ([]byte, store.Info) {
	t.Helper()
	body, info, err := s.Get(context.Background(), key, r)
	if err != nil {
		t.Fatalf("getting %q: %v", key, err)
	}
	defer body.Close()
	content, err := io.ReadAll(body)
	if err != nil {
		t.Fatalf("reading %q: %v", key, err)
	}
	return content, info
}

// MustList returns the keys under a prefix, sorted.
func MustList(t testing.TB, s store.Store, prefix string) []string {
	t.Helper()
	listed := []string{}
	for info, err := range s.List(context.Background(), prefix) {
		if err != nil {
			t.Fatalf("listing %q: %v", prefix, err)
		}
		listed = append(listed, info.Key)
	}
	slices.Sort(listed)
	return listed
}

func wantError(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("the error is %v, want %v", err, want)
	}
}

func wantGone(t testing.TB, s store.Store, key string) {
	t.Helper()
	_, err := s.Head(context.Background(), key)
	wantError(t, err, store.ErrNotFound)
	_, _, err = s.Get(context.Background(), key, store.Range{})
	wantError(t, err, store.ErrNotFound)
}

func wantContent(t testing.TB, s store.Store, key string, want []byte) {
	t.Helper()
	if got, _ := MustGet(t, s, key); !bytes.Equal(got, want) {
		t.Errorf("%q holds %d bytes that are not the %d that were put", key, len(got), len(want))
	}
}

func sum(content []byte) string {
	s := sha256.Sum256(content)
	return hex.EncodeToString(s[:])
}

func putAndGet(t *testing.T, s store.Store) {
	for _, size := range []int{0, 1, 4096, 100_000, 6 << 20} {
		want := Content(1, size)
		key := fmt.Sprintf("sizes/%d", size)
		put := MustPut(t, s, key, want, store.PutOptions{})
		got, info := MustGet(t, s, key)
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes came back as other %d bytes", size, len(got))
		}
		if put.SHA256 != sum(want) {
			t.Errorf("of %d bytes the hash is %s, want %s", size, put.SHA256, sum(want))
		}
		head, err := s.Head(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(info, head); diff != "" {
			t.Errorf("Get and Head differ: %s", diff)
		}
		if put.ETag == "" || put.ETag != info.ETag || put.Key != key || info.Key != key || put.Size != int64(size) || info.Size != int64(size) {
			t.Errorf("Put says %+v, and Get %+v", put, info)
		}
		if info.Modified.IsZero() || info.ContentType != "application/octet-stream" {
			t.Errorf("Get says %+v", info)
		}
	}
	wantGone(t, s, "sizes/2")
	wantGone(t, s, "sizes")
	wantGone(t, s, "sizes/0/below")
}

func replace(t *testing.T, s store.Store) {
	long, short := Content(2, 50_000), Content(3, 10)
	first := MustPut(t, s, "a/object", long, store.PutOptions{Metadata: map[string]string{"old": "1"}})
	second := MustPut(t, s, "a/object", short, store.PutOptions{})
	got, info := MustGet(t, s, "a/object")
	if !bytes.Equal(got, short) || len(info.Metadata) != 0 {
		t.Errorf("what was put second came back as %d bytes with %v", len(got), info.Metadata)
	}
	if first.ETag == second.ETag || info.ETag != second.ETag {
		t.Errorf("the ETags are %q, then %q, and now %q", first.ETag, second.ETag, info.ETag)
	}
}

// onlyReader hides what a reader can do besides.
func onlyReader(r io.Reader) io.Reader { return struct{ io.Reader }{r} }

func unknownSize(t *testing.T, s store.Store) {
	for _, size := range []int{0, 10, 2 << 20, 12<<20 + 7} {
		want := Content(4, size)
		info, err := s.Put(t.Context(), "unknown", onlyReader(bytes.NewReader(want)), -1, store.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if info.Size != int64(size) || info.SHA256 != sum(want) {
			t.Errorf("of %d bytes Put says %+v", size, info)
		}
		wantContent(t, s, "unknown", want)
	}
	want := Content(5, 12<<20)
	if _, err := s.Put(t.Context(), "in pieces", iotest.HalfReader(bytes.NewReader(want)), int64(len(want)), store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, "in pieces", want)
	// From where a reader stands, not from its beginning.
	seeker := bytes.NewReader([]byte("skipped and put"))
	if _, err := seeker.Seek(12, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "the rest", seeker, 3, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, "the rest", []byte("put"))
}

func wrongSize(t *testing.T, s store.Store) {
	for _, size := range []int{5, 12 << 20} {
		for _, said := range []int64{int64(size) - 1, int64(size) + 1, int64(size) * 2} {
			for name, body := range map[string]io.Reader{
				"seekable": bytes.NewReader(Content(6, size)), "streamed": onlyReader(bytes.NewReader(Content(6, size))),
			} {
				if _, err := s.Put(t.Context(), "wrong", body, said, store.PutOptions{}); !errors.Is(err, store.ErrInvalid) || errors.Is(err, store.ErrAway) {
					t.Errorf("%d bytes, %s, said to be %d: the error is %v", size, name, said, err)
				}
			}
		}
	}
	wantGone(t, s, "wrong")
}

func failingBody(t *testing.T, s store.Store) {
	broken := errors.New("the caller's own trouble")
	for _, before := range []int{0, 100, 12 << 20} {
		for _, size := range []int64{-1, int64(before) + 100} {
			body := io.MultiReader(bytes.NewReader(Content(7, before)), iotest.ErrReader(broken))
			_, err := s.Put(t.Context(), "failing", body, size, store.PutOptions{})
			if !errors.Is(err, broken) || errors.Is(err, store.ErrAway) {
				t.Errorf("after %d bytes of %d: the error is %v", before, size, err)
			}
		}
	}
	wantGone(t, s, "failing")
}

func ranges(t *testing.T, s store.Store) {
	whole := []byte("0123456789")
	MustPut(t, s, "ten", whole, store.PutOptions{})
	for _, c := range []struct {
		r    store.Range
		want string
	}{
		{store.Range{}, "0123456789"},
		{store.Range{Offset: 3}, "3456789"},
		{store.Range{Length: 1}, "0"},
		{store.Range{Offset: 9, Length: 1}, "9"},
		{store.Range{Offset: 2, Length: 5}, "23456"},
		{store.Range{Offset: 8, Length: 100}, "89"},
		{store.Range{Length: 10}, "0123456789"},
		{store.Range{Length: 11}, "0123456789"},
	} {
		got, info := mustGetRange(t, s, "ten", c.r)
		if string(got) != c.want || info.Size != 10 {
			t.Errorf("%+v is %q of %d bytes, want %q of 10", c.r, got, info.Size, c.want)
		}
	}
	for _, r := range []store.Range{{Offset: 10}, {Offset: 10, Length: 1}, {Offset: 1000}} {
		_, _, err := s.Get(t.Context(), "ten", r)
		wantError(t, err, store.ErrRange)
	}
	for _, r := range []store.Range{{Offset: -1}, {Length: -1}} {
		_, _, err := s.Get(t.Context(), "ten", r)
		wantError(t, err, store.ErrInvalid)
	}
	MustPut(t, s, "none", nil, store.PutOptions{})
	if got, _ := mustGetRange(t, s, "none", store.Range{Length: 5}); len(got) != 0 {
		t.Errorf("of an empty object came %q", got)
	}
}

func metadata(t *testing.T, s store.Store) {
	given := map[string]string{
		"lastModified": "1754042391123.5", "plain": "a value, with = and ; in it", "empty-ish": " ", "umlaut": "Grüße 世界 🎉",
		"looks-encoded": "=?utf-8?q?no?=", "spaces": "  around  ", "tab": "a\tb", "content-type": "mine", "x_y": "1",
		"long": strings.Repeat("ä", 300),
	}
	want := map[string]string{}
	for name, value := range given {
		want[strings.ToLower(name)] = value
	}
	for _, size := range []int{3, 12 << 20} { // the second goes in parts
		key := fmt.Sprintf("meta/%d", size)
		put, err := s.Put(t.Context(), key, onlyReader(bytes.NewReader(Content(8, size))), -1, store.PutOptions{Metadata: given, ContentType: "text/plain; charset=utf-8"})
		if err != nil {
			t.Fatal(err)
		}
		head, err := s.Head(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range []store.Info{put, head} {
			if diff := cmp.Diff(want, info.Metadata); diff != "" {
				t.Errorf("the metadata came back otherwise (-want +got): %s", diff)
			}
			if info.ContentType != "text/plain; charset=utf-8" {
				t.Errorf("the content type came back as %q", info.ContentType)
			}
		}
	}
	// With the next object comes the next one's.
	MustPut(t, s, "meta/3", []byte("new"), store.PutOptions{Metadata: map[string]string{"plain": "new"}})
	if _, info := MustGet(t, s, "meta/3"); !cmp.Equal(info.Metadata, map[string]string{"plain": "new"}) || info.ContentType != "application/octet-stream" {
		t.Errorf("after a replacement it is %q and %v", info.ContentType, info.Metadata)
	}
	if err := s.Delete(t.Context(), "meta/3"); err != nil {
		t.Fatal(err)
	}
	MustPut(t, s, "meta/3", []byte("newer"), store.PutOptions{})
	if _, info := MustGet(t, s, "meta/3"); len(info.Metadata) != 0 {
		t.Errorf("a deleted object left %v", info.Metadata)
	}
	if listed := MustList(t, s, "meta/"); len(listed) != 2 {
		t.Errorf("listed are %q", listed)
	}
}

func badMetadata(t *testing.T, s store.Store) {
	for _, metadata := range []map[string]string{
		{"": "x"}, {"a b": "x"}, {"ü": "x"}, {"a": "x\ny"}, {"a": "x\x00"}, {"a": "\xff"}, {"a": "1", "A": "2"}, {"a": strings.Repeat("x", 2048)},
	} {
		_, err := s.Put(t.Context(), "bad", strings.NewReader("x"), 1, store.PutOptions{Metadata: metadata})
		wantError(t, err, store.ErrInvalid)
	}
	_, err := s.Put(t.Context(), "bad", strings.NewReader("x"), 1, store.PutOptions{ContentType: "a\r\nb: c"})
	wantError(t, err, store.ErrInvalid)
	wantGone(t, s, "bad")
}

func keys(t *testing.T, s store.Store) {
	names := []string{
		"plain.txt", "with space", " leading", "trailing ", "ünïcödé", "世界/🎉", "per%cent", "%25", "%2F", "a%file", "a%meta", "a%~", "%tmp/x",
		"a..b", "...", ".hidden", "..x/y", "plus+and&=", "q?x=1#y", "back\\slash", "quote\"'", "<xml>&amp;", "new\nline", "tab\there", "co:lon", "*", "~",
		"e\u0301", "\u00e9", strings.Repeat("d/", 100) + "deep", "-", "UPPER", "upper", "return\rhere", "semi;colon,comma", "[brackets]{braces}", "$HOME`x`",
	}
	for _, name := range names {
		MustPut(t, s, "keys/"+name, []byte(name), store.PutOptions{Metadata: map[string]string{"name": strings.NewReplacer("\n", "", "\r", "").Replace(name)}})
	}
	want := make([]string, 0, len(names))
	for _, name := range names {
		wantContent(t, s, "keys/"+name, []byte(name))
		want = append(want, "keys/"+name)
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, MustList(t, s, "keys/")); diff != "" {
		t.Errorf("the listing differs (-want +got): %s", diff)
	}
	if err := s.Delete(t.Context(), "keys/per%cent"); err != nil {
		t.Fatal(err)
	}
	wantGone(t, s, "keys/per%cent")
	if err := s.DeletePrefix(t.Context(), "keys/"); err != nil {
		t.Fatal(err)
	}
	if left := MustList(t, s, ""); len(left) != 0 {
		t.Errorf("after deleting them all there are %q", left)
	}
}

// RunAnyKey tests keys that S3 has, and that a server on a file system may not:
// an object beside a folder of its name, and elements longer than a file's name.
func RunAnyKey(t *testing.T, open func(t *testing.T) store.Store) {
	t.Helper()
	t.Run("an object and a folder can have one name", func(t *testing.T) {
		for name, order := range map[string][]string{"object first": {"a", "a/b", "a/b/c"}, "folder first": {"a/b/c", "a/b", "a"}} {
			t.Run(name, func(t *testing.T) { sameName(t, open(t), order) })
		}
	})
	t.Run("elements can be as long as a key", func(t *testing.T) { longElements(t, open(t)) })
}

func sameName(t *testing.T, s store.Store, order []string) {
	for _, key := range order {
		MustPut(t, s, key, []byte("first "+key), store.PutOptions{Metadata: map[string]string{"key": key}})
	}
	for _, key := range order {
		MustPut(t, s, key, []byte(key), store.PutOptions{Metadata: map[string]string{"key": key}})
	}
	for _, key := range order {
		wantContent(t, s, key, []byte(key))
		if _, info := MustGet(t, s, key); info.Metadata["key"] != key {
			t.Errorf("%q has the metadata %v", key, info.Metadata)
		}
	}
	if diff := cmp.Diff([]string{"a", "a/b", "a/b/c"}, MustList(t, s, "")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"a/b", "a/b/c"}, MustList(t, s, "a/")); diff != "" {
		t.Error(diff)
	}
	if err := s.Delete(t.Context(), "a/b"); err != nil {
		t.Fatal(err)
	}
	wantGone(t, s, "a/b")
	wantContent(t, s, "a/b/c", []byte("a/b/c"))
	if err := s.DeletePrefix(t.Context(), "a/"); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, "a", []byte("a"))
	if diff := cmp.Diff([]string{"a"}, MustList(t, s, "")); diff != "" {
		t.Error(diff)
	}
}

func longElements(t *testing.T, s store.Store) {
	names := []string{
		strings.Repeat("x", 255), strings.Repeat("x", 256), strings.Repeat("x", 1024), strings.Repeat("世", 341), strings.Repeat("%", 1024),
		strings.Repeat("y", 500) + "/" + strings.Repeat("z", 500), strings.Repeat("y", 500), strings.Repeat("y", 240), strings.Repeat("y", 480),
		strings.Repeat("y", 240) + "/below", strings.Repeat(".", 241), strings.Repeat(".", 482), strings.Repeat("%", 79) + "..", strings.Repeat("v", 239) + "%~",
	}
	for _, name := range names {
		MustPut(t, s, name, []byte(name), store.PutOptions{Metadata: map[string]string{"size": fmt.Sprint(len(name))}})
	}
	for _, name := range names {
		wantContent(t, s, name, []byte(name))
	}
	slices.Sort(names)
	if diff := cmp.Diff(names, MustList(t, s, "")); diff != "" {
		t.Errorf("the listing differs (-want +got): %s", diff)
	}
	prefix := strings.Repeat("y", 500) + "/"
	if err := s.DeletePrefix(t.Context(), prefix); err != nil {
		t.Fatal(err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, prefix) })
	for i, name := range names {
		if err := s.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(names[i+1:], MustList(t, s, ""), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("after deleting one, the listing differs (-want +got): %s", diff)
		}
	}
}

func badKeys(t *testing.T, s store.Store) {
	for _, key := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/..", "./a", "a/./b", "a\x00b", "a\x01b", "\xff", "\uffff", strings.Repeat("x", 1025),
	} {
		ctx := t.Context()
		_, err := s.Put(ctx, key, iotest.ErrReader(errors.New("the body was read")), 1, store.PutOptions{})
		wantError(t, err, store.ErrKey)
		_, _, err = s.Get(ctx, key, store.Range{})
		wantError(t, err, store.ErrKey)
		_, err = s.Head(ctx, key)
		wantError(t, err, store.ErrKey)
		wantError(t, s.Delete(ctx, key), store.ErrKey)
		if strings.HasSuffix(key, "/") && key != "/" {
			continue // a good prefix
		}
		wantError(t, s.DeletePrefix(ctx, key), store.ErrKey)
		if key == "" {
			continue // everything
		}
		for _, err = range s.List(ctx, key) {
			break
		}
		wantError(t, err, store.ErrKey)
	}
	for _, prefix := range []string{"a", "a//", "/a/", "../"} {
		var err error
		for _, err = range s.List(t.Context(), prefix) {
			break
		}
		wantError(t, err, store.ErrKey)
	}
}

func list(t *testing.T, s store.Store) {
	for _, key := range []string{"a/1", "a/2", "a/b/3", "a/b/c/4", "ab/5", "a-b/6", "a.txt", "z"} {
		MustPut(t, s, key, []byte(key), store.PutOptions{})
	}
	for prefix, want := range map[string][]string{
		"":       {"a-b/6", "a.txt", "a/1", "a/2", "a/b/3", "a/b/c/4", "ab/5", "z"},
		"a/":     {"a/1", "a/2", "a/b/3", "a/b/c/4"},
		"a/b/":   {"a/b/3", "a/b/c/4"},
		"ab/":    {"ab/5"},
		"b/":     {},
		"z/":     {},
		"a/1/x/": {},
	} {
		if diff := cmp.Diff(want, MustList(t, s, prefix)); diff != "" {
			t.Errorf("under %q (-want +got): %s", prefix, diff)
		}
	}
	for info, err := range s.List(t.Context(), "a/") {
		if err != nil {
			t.Fatal(err)
		}
		head, err := s.Head(t.Context(), info.Key)
		if err != nil {
			t.Fatal(err)
		}
		if info.ETag != head.ETag || info.Size != head.Size || info.Modified.Unix() != head.Modified.Unix() {
			t.Errorf("List says %+v, and Head %+v", info, head)
		}
	}
}

func listMany(t *testing.T, s store.Store) {
	const count, workers = 2500, 16
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for i := worker; i < count; i += workers {
				key := fmt.Sprintf("many/%d/%d", i%7, i)
				if _, err := s.Put(context.Background(), key, strings.NewReader(key), int64(len(key)), store.PutOptions{}); err != nil {
					t.Errorf("putting %q: %v", key, err)
				}
			}
		})
	}
	group.Wait()
	MustPut(t, s, "many2/x", nil, store.PutOptions{})
	listed := MustList(t, s, "many/")
	if unique := len(slices.Compact(slices.Clone(listed))); len(listed) != count || unique != count {
		t.Errorf("listed are %d objects, %d of them different, of %d", len(listed), unique, count)
	}
	if err := s.DeletePrefix(t.Context(), "many/"); err != nil {
		t.Fatal(err)
	}
	if left := MustList(t, s, ""); !slices.Equal(left, []string{"many2/x"}) {
		t.Errorf("left are %q", left)
	}
}

func listEnds(t *testing.T, s store.Store) {
	for i := range 5 {
		MustPut(t, s, fmt.Sprintf("ends/%d", i), nil, store.PutOptions{})
	}
	count := 0
	for _, err := range s.List(t.Context(), "ends/") {
		if err != nil {
			t.Fatal(err)
		}
		count++
		if count == 2 {
			break
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var err error
	for _, err = range s.List(ctx, "ends/") {
		if err != nil {
			break
		}
	}
	wantError(t, err, context.Canceled)
}

func deleteInList(t *testing.T, s store.Store) {
	for i := range 50 {
		MustPut(t, s, fmt.Sprintf("walk/%d/%d", i%5, i), nil, store.PutOptions{})
	}
	for info, err := range s.List(t.Context(), "walk/") {
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), info.Key); err != nil {
			t.Fatal(err)
		}
	}
	if left := MustList(t, s, ""); len(left) != 0 {
		t.Errorf("left are %q", left)
	}
}

func deletes(t *testing.T, s store.Store) {
	for _, key := range []string{"d/one", "d/one.txt", "d/o/ne"} {
		MustPut(t, s, key, []byte(key), store.PutOptions{Metadata: map[string]string{"a": "b"}})
	}
	for range 2 {
		for _, key := range []string{"d/one", "nothing", "no/thing", "d/one/below", "d", "d/o"} {
			if err := s.Delete(t.Context(), key); err != nil {
				t.Errorf("deleting %q: %v", key, err)
			}
		}
	}
	if diff := cmp.Diff([]string{"d/o/ne", "d/one.txt"}, MustList(t, s, "")); diff != "" {
		t.Error(diff)
	}
	MustPut(t, s, "d/one", []byte("again"), store.PutOptions{})
	wantContent(t, s, "d/one", []byte("again"))
}

func deletePrefix(t *testing.T, s store.Store) {
	for _, key := range []string{"p/q/1", "p/q/r/2", "p/qq/3", "p/q.txt", "pq"} {
		MustPut(t, s, key, nil, store.PutOptions{Metadata: map[string]string{"a": "b"}})
	}
	for range 2 {
		if err := s.DeletePrefix(t.Context(), "p/q/"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeletePrefix(t.Context(), "pq/"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"p/q.txt", "p/qq/3", "pq"}, MustList(t, s, "")); diff != "" {
		t.Error(diff)
	}
	MustPut(t, s, "p/q/1", []byte("again"), store.PutOptions{})
	wantContent(t, s, "p/q/1", []byte("again"))
}
