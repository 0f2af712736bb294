package workspace

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/lifecycle"
	"github.com/agentpod/agentpod/gateway/internal/snapshot"
	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// attacker is what answers in place of sandboxd.
type attacker struct {
	list, read, restore http.HandlerFunc
}

// serve starts it and returns how the gateway reaches it. Go's transport unpacks
// gzip by itself, so that is a bomb's way too.
func (a attacker) serve(t *testing.T) *guest.Client {
	t.Helper()
	mux := http.NewServeMux()
	for route, handler := range map[string]http.HandlerFunc{guest.RouteTree: a.list, guest.RouteTreeRead: a.read, guest.RouteTreeRestore: a.restore} {
		if handler != nil {
			mux.HandleFunc(route, handler)
		}
	}
	server := httptest.NewUnstartedServer(mux)
	ctx, cancel := context.WithCancel(t.Context()) // a request's ends by itself only once its body was read
	server.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	server.Start()
	transport := &http.Transport{}
	t.Cleanup(func() {
		cancel()
		transport.CloseIdleConnections()
		server.CloseClientConnections()
		server.Close()
	})
	return guest.NewClient(transport, server.URL, boxToken)
}

// says answers with these bytes.
func says(parts ...[]byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for _, part := range parts {
			_, _ = w.Write(part)
		}
	}
}

// stalls answers with these bytes, and then with nothing until the caller goes.
func stalls(parts ...[]byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for _, part := range parts {
			_, _ = w.Write(part)
		}
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

// endless answers with what next makes, as long as somebody reads it.
func endless(next func(i int) []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		out := bufio.NewWriterSize(w, 64<<10)
		for i := 0; ; i++ {
			if _, err := out.Write(next(i)); err != nil {
				return
			}
		}
	}
}

// zipped answers with bytes again and again, at a thousandth of their size.
func zipped(head, again []byte) http.HandlerFunc {
	first, next := gzipped(head), gzipped(again)
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, err := w.Write(first)
		for err == nil { // one behind the other is gzip too
			_, err = w.Write(next)
		}
	}
}

func gzipped(plain []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(plain)
	_ = z.Close()
	return out.Bytes()
}

func line(e guest.TreeEntry) []byte { return append(e.AppendJSON(nil), '\n') }

func folderNamed(path string) guest.TreeEntry {
	return guest.TreeEntry{Path: path, Type: guest.TreeDirectory, Mode: 0o755}
}

func fileNamed(path string, size int64) guest.TreeEntry {
	return guest.TreeEntry{Path: path, Type: guest.TreeFile, Mode: 0o644, Size: size, ModifiedNs: 1, ChangedNs: 1, Inode: 1}
}

// listing is a whole one: the workspace, and these.
func listing(entries ...guest.TreeEntry) []byte {
	out := line(folderNamed(workspaceFolder))
	for _, e := range entries {
		out = append(out, line(e)...)
	}
	return fmt.Appendf(out, `{"end":true,"entries":%d}`+"\n", len(entries)+1)
}

func frame(kind guest.Frame, payload []byte) []byte {
	var out bytes.Buffer
	_ = guest.WriteFrame(&out, kind, payload)
	return out.Bytes()
}

func fileFrame(kind guest.Frame, index uint32, status byte, size int64) []byte {
	return frame(kind, guest.FileFrame{Index: index, Status: status, Size: size}.Append(nil))
}

// begins is what comes of a file: what is said of it, and some content.
func begins(index uint32, said int64, content string) []byte {
	return append(fileFrame(guest.FrameFile, index, guest.TreeOK, said), frame(guest.FrameData, []byte(content))...)
}

// sends is a whole file.
func sends(index uint32, said int64, content string) []byte {
	return append(begins(index, said, content), fileFrame(guest.FrameDone, index, guest.TreeOK, int64(len(content)))...)
}

var end = frame(guest.FrameEnd, nil) //nolint:gochecknoglobals // a constant

// fails answers as sandboxd would, with an error of that code.
func fails(code sandbox.Code, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusConflict)
		raw, _ := json.Marshal(guest.ErrorBody{Error: message, Code: string(code)})
		_, _ = w.Write(raw)
	}
}

// scene is a sandbox with a snapshot and a mirror, and a neighbour.
type scene struct {
	store     store.Store
	keeper    *Keeper
	ref       lifecycle.Ref
	neighbour *history
	want      map[string]seen
	snapshot  lifecycle.Snapshot
	target    *box
	others    map[string][32]byte // stored objects that are not the sandbox's
}

func newScene(t *testing.T, limits snapshot.Settings) *scene {
	t.Helper()
	s := directory(t, t.TempDir())
	sc := &scene{store: s, keeper: newKeeper(t, s, limits), ref: refTo("box", "i1"), target: newBox(t)}
	sc.neighbour = newHistory(t, s, refTo("box2", "i1"))
	source := newBox(t)
	source.write(t, "workspace/kept", "what was there before")
	source.write(t, ".config/kept", "and this")
	mustBegin(t, sc.keeper, sc.ref)
	sc.snapshot = mustSnapshot(t, sc.keeper, sc.ref, source)
	if _, err := sc.keeper.Sync(t.Context(), sc.ref, source.Client); err != nil {
		t.Fatal(err)
	}
	sc.want = picture(t, source.home)
	sc.others = without(objects(t, s, ""), "box")
	return sc
}

// unharmed checks that everything is as it was before an attack.
func (sc *scene) unharmed(t *testing.T) {
	t.Helper()
	if got := without(objects(t, sc.store, ""), "box"); len(got) != len(sc.others) {
		t.Errorf("there are %d objects of others, and there were %d", len(got), len(sc.others))
	} else {
		for key, hash := range sc.others {
			if got[key] != hash {
				t.Errorf("%s was changed", key)
			}
		}
	}
	list, err := sc.keeper.Snapshots(t.Context(), sc.ref)
	if err != nil || len(list) != 1 || list[0].ID != sc.snapshot.ID {
		t.Errorf("the snapshots are %v, %v", list, err)
	}
	sc.target.wipe(t)
	if _, err := restore(t, sc.keeper, sc.ref, "", sc.target); err != nil {
		t.Fatal(err)
	}
	wantSame(t, sc.want, picture(t, sc.target.home))
}

// wantError checks that an error has a code, and a message that is one for
// people, of a length for them.
func wantError(t *testing.T, doing string, err error, code sandbox.Code) {
	t.Helper()
	e, ok := errors.AsType[*sandbox.Error](err)
	if !ok || e.Code != code {
		t.Errorf("%s: the error is %.500v, want %s", doing, err, code)
		return
	}
	if len(e.Message) < 10 || len(e.Message) > 5000 {
		t.Errorf("%s: the message has %d bytes: %.200s", doing, len(e.Message), e.Message)
	}
}

// patience is how long the gateway waits for a sandbox, by what is to come of it.
func patience(code sandbox.Code) time.Duration {
	if code == sandbox.CodeDeadline {
		return 300 * time.Millisecond
	}
	return 5 * time.Minute
}

func TestAHostileSandboxIsRefused(t *testing.T) {
	inside := workspaceFolder + "/"
	one := says(listing(fileNamed(inside+"f", 4)))
	raw := func(path, more string) []byte { // what AppendJSON would not write
		encoded, _ := json.Marshal([]byte(path))
		return fmt.Appendf(nil, `{"path":%s,"type":"file","mode":420%s}`+"\n", encoded, more)
	}
	listed := func(lines ...[]byte) attacker {
		return attacker{list: says(lines...)}
	}
	sent := func(parts ...[]byte) attacker { return attacker{list: one, read: says(parts...)} }
	long := strings.Repeat("n", 255)
	const (
		refused = sandbox.CodeGuestFailed
		fine    = sandbox.Code("none") // a mirror has no folders, so that it does not mind
	)
	for name, c := range map[string]struct {
		attacker
		code sandbox.Code
		sync sandbox.Code // if a sync's is another
	}{
		// paths
		"a path upwards":                  {attacker: listed(raw("../x", "")), code: refused},
		"a path upwards in the workspace": {attacker: listed(raw(inside+"../../x", "")), code: refused},
		"an absolute path":                {attacker: listed(raw("/etc/passwd", "")), code: refused},
		"an empty path":                   {attacker: listed(raw("", "")), code: refused},
		"an empty element":                {attacker: listed(raw(inside+"a//b", "")), code: refused},
		"the home itself":                 {attacker: listed(raw(".", "")), code: refused},
		"a NUL":                           {attacker: listed(raw(inside+"a\x00b", "")), code: refused},
		"a name that no disk can hold":    {attacker: listed(raw(inside+strings.Repeat("n", 256), "")), code: refused},
		"a path that is too deep":         {attacker: listed(raw(strings.Repeat("d/", 600)+"f", "")), code: refused},
		"a path twice":                    {attacker: attacker{list: says(listing(fileNamed(inside+"f", 0), fileNamed(inside+"f", 0)))}, code: refused},
		"a file and a folder of a name":   {attacker: attacker{list: says(listing(fileNamed("f", 0), folderNamed("f")))}, code: refused, sync: fine},
		"a file under a file":             {attacker: attacker{list: says(listing(fileNamed("f", 0), fileNamed("f/g", 0)))}, code: refused, sync: fine},
		"a file in no folder":             {attacker: attacker{list: says(listing(fileNamed("none/f", 0)))}, code: refused, sync: fine},
		"a file under a link that leads outside": {attacker: attacker{list: says(listing(
			guest.TreeEntry{Path: "etc", Type: guest.TreeSymlink, Mode: 0o777, Target: "/etc"}, fileNamed("etc/passwd", 0),
		))}, code: refused, sync: fine},
		// kinds
		"a device":                         {attacker: listed([]byte(`{"path":"Zg==","type":"device"}` + "\n")), code: refused},
		"a hard link":                      {attacker: listed([]byte(`{"path":"Zg==","type":"link","target":"L2V0Yy9wYXNzd2Q="}` + "\n")), code: refused},
		"a link to nothing":                {attacker: listed([]byte(`{"path":"Zg==","type":"symlink"}` + "\n")), code: refused},
		"a link with a NUL":                {attacker: listed(line(guest.TreeEntry{Path: "f", Type: guest.TreeSymlink, Target: "a\x00b"})), code: refused},
		"a mode with a type":               {attacker: listed(line(guest.TreeEntry{Path: "f", Type: guest.TreeFile, Mode: 0o100644})), code: refused},
		"a negative size":                  {attacker: listed(line(fileNamed("f", -1))), code: refused},
		"a folder with a size":             {attacker: listed(line(guest.TreeEntry{Path: "f", Type: guest.TreeDirectory, Size: 1})), code: refused},
		"a size that no number holds":      {attacker: listed(raw("f", `,"size":1e30`)), code: refused},
		"sizes whose sum no number holds":  {attacker: attacker{list: says(listing(fileNamed(inside+"a", math.MaxInt64), fileNamed(inside+"b", math.MaxInt64)))}, code: sandbox.CodeWorkspaceLimit, sync: refused},
		"more bytes than a sandbox may":    {attacker: attacker{list: says(listing(fileNamed(inside+"a", 300<<30)))}, code: sandbox.CodeWorkspaceLimit},
		"what is no JSON":                  {attacker: listed([]byte("hello\n")), code: refused},
		"JSON that nests without an end":   {attacker: listed([]byte(strings.Repeat("[", 200_000) + "\n")), code: refused},
		"an end that says another number":  {attacker: listed([]byte(`{"end":true,"entries":7}` + "\n")), code: refused},
		"a listing without an end":         {attacker: listed(line(folderNamed("f"))), code: refused},
		"nothing at all":                   {attacker: listed(), code: refused},
		"a listing that failed":            {attacker: listed([]byte(`{"end":true,"error":"no\u0007thing\n` + strings.Repeat("x", 100_000) + `"}` + "\n")), code: refused},
		"an error that is the gateway's":   {attacker: attacker{list: fails(sandbox.CodeSnapshotDamaged, "it is lost")}, code: refused},
		"an error that says it is deleted": {attacker: attacker{list: fails(sandbox.CodeSandboxDeleted, "it is gone")}, code: refused},
		"a redirect to somewhere else": {attacker: attacker{list: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusTemporaryRedirect)
		}}, code: refused},
		// endless
		"a listing without end": {attacker: attacker{list: endless(func(i int) []byte { return line(fileNamed(inside+strconv.Itoa(i), 0)) })}, code: sandbox.CodeWorkspaceLimit},
		"a listing of the longest paths": {attacker: attacker{list: endless(func(i int) []byte {
			return line(fileNamed(inside+strings.Repeat(long+"/", 500)+strconv.Itoa(i), 0))
		})}, code: sandbox.CodeWorkspaceLimit},
		"a line that never ends":             {attacker: attacker{list: endless(func(int) []byte { return bytes.Repeat([]byte("x"), 64<<10) })}, code: refused},
		"a line that never ends, compressed": {attacker: attacker{list: zipped([]byte(`{"path":"`), bytes.Repeat([]byte("A"), 1<<20))}, code: refused},
		"lines that are empty":               {attacker: attacker{list: endless(func(int) []byte { return bytes.Repeat([]byte("\n"), 64<<10) })}, code: refused},
		"a listing that is a bomb":           {attacker: attacker{list: zipped(nil, bytes.Repeat(line(fileNamed(inside+"f", 0)), 10_000))}, code: sandbox.CodeWorkspaceLimit},
		"an error that is a bomb": {attacker: attacker{list: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(http.StatusInternalServerError)
			zipped([]byte(`{"code":"disk_full","error":"`), bytes.Repeat([]byte("A"), 1<<20))(w, r)
		}}, code: refused},
		"a reply that is a header without end": {attacker: attacker{list: func(w http.ResponseWriter, _ *http.Request) {
			for i := range 2000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 8<<10))
			}
		}}, code: refused},
		// content
		"fewer bytes than were said":         {attacker: sent(sends(0, 4, "abc"), end), code: refused},
		"more bytes than were said":          {attacker: sent(sends(0, 4, "abcde"), end), code: refused},
		"fewer bytes of a large file":        {attacker: sent(sends(0, 3<<20, "abc"), end), code: refused},
		"a file of another number":           {attacker: sent(sends(1, 4, "abcd"), end), code: refused},
		"a file that ends as another":        {attacker: sent(fileFrame(guest.FrameFile, 0, 0, 0), fileFrame(guest.FrameDone, 1, 0, 0), end), code: refused},
		"a file that comes twice":            {attacker: sent(sends(0, 4, "abcd"), sends(0, 4, "abcd"), end), code: refused},
		"a file that nobody asked for":       {attacker: sent(sends(0, 4, "abcd"), sends(1, 4, "abcd"), end), code: refused},
		"no files":                           {attacker: sent(end), code: refused},
		"files that are broken off":          {attacker: sent(sends(0, 4, "abcd")), code: refused},
		"a file that is broken off":          {attacker: sent(begins(0, 4, "ab")), code: refused},
		"a frame that is too long":           {attacker: sent([]byte{'F', 0xff, 0xff, 0xff, 0xff}), code: refused},
		"an unknown frame":                   {attacker: sent(frame('?', nil)), code: refused},
		"a path instead of a file":           {attacker: sent(frame(guest.FramePath, []byte("/etc/passwd"))), code: refused},
		"a status that is unknown":           {attacker: sent(fileFrame(guest.FrameFile, 0, 9, 4)), code: refused},
		"a size that is negative":            {attacker: sent(fileFrame(guest.FrameFile, 0, 0, -4)), code: refused},
		"data that is empty, without end":    {attacker: attacker{list: one, read: endless(func(int) []byte { return frame(guest.FrameData, nil) })}, code: refused},
		"a file that cannot be read":         {attacker: sent(fileFrame(guest.FrameFile, 0, guest.TreeFailed, 0), end), code: refused},
		"a file that has grown beyond all":   {attacker: sent(fileFrame(guest.FrameFile, 0, 0, math.MaxInt64)), code: refused},
		"a file that has grown beyond a lot": {attacker: sent(fileFrame(guest.FrameFile, 0, 0, 300<<30)), code: sandbox.CodeWorkspaceLimit},
		// stalls
		"no reply":                      {attacker: attacker{list: stalls()}, code: sandbox.CodeDeadline},
		"a listing that stalls":         {attacker: attacker{list: stalls(line(folderNamed("f")))}, code: sandbox.CodeDeadline},
		"a listing that stalls in line": {attacker: attacker{list: stalls([]byte(`{"path":"`))}, code: sandbox.CodeDeadline},
		"files that stall":              {attacker: attacker{list: one, read: stalls()}, code: sandbox.CodeDeadline},
		"a file that stalls":            {attacker: attacker{list: one, read: stalls(begins(0, 4, "ab"))}, code: sandbox.CodeDeadline},
		"a large file that stalls":      {attacker: attacker{list: one, read: stalls(begins(0, 1<<30, strings.Repeat("x", 100_000)))}, code: sandbox.CodeDeadline},
		"a large file that never comes": {attacker: attacker{list: one, read: stalls(fileFrame(guest.FrameFile, 0, 0, 1<<30))}, code: sandbox.CodeDeadline},
	} {
		t.Run(name, func(t *testing.T) {
			sc := newScene(t, snapshot.Settings{MaxEntries: 20_000, MaxNames: 8 << 20})
			client := c.serve(t)
			for doing, call := range map[string]func(ctx context.Context) error{
				"a snapshot": func(ctx context.Context) error { _, err := sc.keeper.Snapshot(ctx, sc.ref, client); return err },
				"a sync":     func(ctx context.Context) error { _, err := sc.keeper.Sync(ctx, sc.ref, client); return err },
			} {
				ctx, cancel := context.WithTimeout(t.Context(), patience(c.code))
				var err error
				begun := time.Now()
				took := peak(func() { err = call(ctx) })
				cancel()
				t.Logf("%s: %d MiB in %v, %.200v", doing, took>>20, time.Since(begun).Round(time.Millisecond), err)
				wantLittle(t, took)
				want := c.code
				if doing == "a sync" {
					want = cmp.Or(c.sync, want)
				}
				if want != fine || err != nil {
					wantError(t, doing, err, want)
				}
			}
			sc.unharmed(t)
		})
	}
}

func TestAListingWithoutEndTakesLittleMemoryUpToTheGatewaysOwnLimits(t *testing.T) {
	sc := newScene(t, snapshot.Settings{})
	client := attacker{
		list: endless(func(i int) []byte { return line(fileNamed(workspaceFolder+"/"+strconv.Itoa(i), 0)) }),
	}.serve(t)
	var err error
	took := peak(func() { _, err = sc.keeper.Snapshot(t.Context(), sc.ref, client) })
	t.Logf("%d MiB", took>>20)
	wantLittle(t, took)
	wantError(t, "a snapshot", err, sandbox.CodeWorkspaceLimit)
	sc.unharmed(t)
}

// zeros is a file of nothing else, which a sandbox sends.
func zeros(size int64) attacker {
	return attacker{
		list: says(listing(fileNamed(workspaceFolder+"/bomb", size))),
		read: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(fileFrame(guest.FrameFile, 0, guest.TreeOK, size))
			piece := frame(guest.FrameData, make([]byte, 128<<10))
			for left := size; left > 0; left -= 128 << 10 {
				if _, err := w.Write(piece); err != nil {
					return
				}
			}
			_, _ = w.Write(append(fileFrame(guest.FrameDone, 0, guest.TreeOK, size), end...))
		},
	}
}

func TestABombOfTenThousandToOneTakesLittleMemory(t *testing.T) {
	const size = 512 << 20
	sc := newScene(t, snapshot.Settings{})
	used := func() (bytes int64) {
		for _, key := range storetest.MustList(t, sc.store, "snapshots/box/") {
			bytes += int64(len(get(t, sc.store, key)))
		}
		return bytes
	}
	before := used()
	client := zeros(size).serve(t)
	wantLittle(t, peak(func() {
		if taken, err := sc.keeper.Snapshot(t.Context(), sc.ref, client); err != nil || taken.Bytes != size {
			t.Errorf("%+v, %v", taken, err)
		}
	}))
	stored := used() - before
	t.Logf("%d bytes are stored as %d", size, stored)
	if stored > size/10_000 {
		t.Error("that is no bomb")
	}
	wantLittle(t, peak(func() {
		if _, err := restore(t, sc.keeper, sc.ref, "", sc.target); err != nil {
			t.Error(err)
		}
	}))
	if got := picture(t, sc.target.home)["workspace/bomb"]; got.Size != size {
		t.Errorf("it came back as %+v", got)
	}
	// The one before is there still.
	sc.target.wipe(t)
	if _, err := restore(t, sc.keeper, sc.ref, sc.snapshot.ID, sc.target); err != nil {
		t.Fatal(err)
	}
	wantSame(t, sc.want, picture(t, sc.target.home))
}

func TestABombThatIsLargerThanASandboxMayBeIsRefused(t *testing.T) {
	sc := newScene(t, snapshot.Settings{MaxBytes: 256 << 20})
	client := zeros(512 << 20).serve(t)
	wantLittle(t, peak(func() {
		_, err := sc.keeper.Snapshot(t.Context(), sc.ref, client)
		wantError(t, "a snapshot", err, sandbox.CodeWorkspaceLimit)
	}))
	sc.unharmed(t)
}

func TestWhatASandboxSaysOfAnothersFilesIsNotBelieved(t *testing.T) {
	victim := "the neighbour's secret"
	hash := sha256.Sum256([]byte(victim))
	s := directory(t, t.TempDir())
	k, neighbour, target := newKeeper(t, s, snapshot.Settings{}), newBox(t), newBox(t)
	neighbour.write(t, "workspace/secret", victim)
	theirs, mine := refTo("neighbour", "i1"), refTo("box", "i1")
	mustBegin(t, k, theirs)
	mustBegin(t, k, mine)
	mustSnapshot(t, k, theirs, neighbour)
	var entry guest.TreeEntry
	if _, err := neighbour.Tree(t.Context(), 100, func(e guest.TreeEntry) error {
		if e.Path == "workspace/secret" {
			entry = e
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// It knows all that there is to know of the file but what is in it.
	claim := bytes.TrimSuffix(entry.AppendJSON(nil), []byte("}"))
	claim = fmt.Appendf(claim, `,"hash":"%x","sha256":"%x","chunks":[{"pack":0,"offset":0,"length":%d,"hash":"%x"}]}`+"\n", hash, hash, len(victim), hash)
	all := fmt.Appendf(append(line(folderNamed(workspaceFolder)), claim...), `{"end":true,"entries":2}`+"\n")
	lie := strings.Repeat("x", len(victim))
	for name, c := range map[string]struct {
		read []byte
		want string // what is in the file then; "" if there is none
		code sandbox.Code
	}{
		"with other content":        {append(sends(0, entry.Size, lie), end...), lie, ""},
		"with no content":           {append(sends(0, entry.Size, ""), end...), "", sandbox.CodeGuestFailed},
		"as a file that is gone":    {append(fileFrame(guest.FrameFile, 0, guest.TreeGone, 0), end...), "", ""},
		"as a file that was cut":    {append(begins(0, entry.Size, "x"), append(fileFrame(guest.FrameDone, 0, guest.TreeChanged, 1), end...)...), "x", ""},
		"as a file without a frame": {end, "", sandbox.CodeGuestFailed},
	} {
		t.Run(name, func(t *testing.T) {
			if err := k.Delete(t.Context(), mine); err != nil {
				t.Fatal(err)
			}
			mustBegin(t, k, mine)
			_, err := k.Snapshot(t.Context(), mine, attacker{list: says(all), read: says(c.read)}.serve(t))
			if c.code != "" {
				wantError(t, "a snapshot", err, c.code)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			target.wipe(t)
			if _, err := restore(t, k, mine, "", target); err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(filepath.Join(target.home, "workspace", "secret"))
			if string(raw) != c.want || (err != nil) != (c.want == "") {
				t.Errorf("it came back as %q, %v", raw, err)
			}
		})
	}
	wantRestored(t, k, theirs, "", picture(t, neighbour.home))
}

func TestASandboxThatLiesAboutARestoreIsRefused(t *testing.T) {
	sc := newScene(t, snapshot.Settings{})
	honest := guest.Restored{Files: 1, Directories: 1, Bytes: int64(len("and this"))}
	reply := func(change func(*guest.Restored)) http.HandlerFunc {
		said := honest
		change(&said)
		raw, _ := json.Marshal(said)
		return says(raw)
	}
	const refused = sandbox.CodeGuestFailed
	for name, c := range map[string]struct {
		restore http.HandlerFunc
		code    sandbox.Code
	}{
		"it says the truth":              {reply(func(*guest.Restored) {}), ""},
		"more files":                     {reply(func(r *guest.Restored) { r.Files++ }), refused},
		"fewer files":                    {reply(func(r *guest.Restored) { r.Files = 0 }), refused},
		"fewer folders":                  {reply(func(r *guest.Restored) { r.Directories-- }), refused},
		"other bytes":                    {reply(func(r *guest.Restored) { r.Bytes = math.MinInt64 }), refused},
		"nothing":                        {says(), refused},
		"what is no JSON":                {says([]byte("done")), refused},
		"an answer without end":          {endless(func(int) []byte { return bytes.Repeat([]byte(" "), 64<<10) }), refused},
		"an answer that is a bomb":       {zipped([]byte(`{"files":`), bytes.Repeat([]byte("1"), 1<<20)), refused},
		"an error that is the gateway's": {fails(sandbox.CodeSnapshotDamaged, "everything is lost"), refused},
		"an error of its own":            {fails(sandbox.CodeDiskFull, "the sandbox's disk is full"), sandbox.CodeDiskFull},
		"a stall":                        {stalls(), sandbox.CodeDeadline},
		"a stall in the answer":          {stalls([]byte(`{"files":`)), sandbox.CodeDeadline},
		"a stall before it reads":        {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, sandbox.CodeDeadline},
		"no such route":                  {nil, refused},
	} {
		t.Run(name, func(t *testing.T) {
			client := attacker{restore: c.restore}.serve(t)
			ctx, cancel := context.WithTimeout(t.Context(), patience(c.code))
			defer cancel()
			var n int64
			var err error
			wantLittle(t, peak(func() { n, err = sc.keeper.Restore(ctx, sc.ref, "", lifecycle.PartState, client, nil) }))
			if c.code != "" {
				wantError(t, "a restore", err, c.code)
				if n != 0 || strings.Contains(err.Error(), "/wake") {
					t.Errorf("%d files, %v", n, err)
				}
			} else if err != nil || n != honest.Files {
				t.Errorf("%d files, %v", n, err)
			}
		})
	}
	sc.unharmed(t)
}

func TestAFileThatNeverStopsChangingIsKeptAsItCame(t *testing.T) {
	sc := newScene(t, snapshot.Settings{})
	reads := 0
	client := attacker{
		list: says(listing(fileNamed(workspaceFolder+"/log", 4))),
		read: func(w http.ResponseWriter, r *http.Request) {
			reads++
			content := fmt.Sprintf("%04d", reads)
			said := append(begins(0, 4, content), fileFrame(guest.FrameDone, 0, guest.TreeChanged, 4)...)
			says(append(said, end...))(w, r)
		},
	}.serve(t)
	if _, err := sc.keeper.Snapshot(t.Context(), sc.ref, client); err != nil {
		t.Fatal(err)
	}
	if reads != readTries {
		t.Errorf("it was read %d times", reads)
	}
	if _, err := restore(t, sc.keeper, sc.ref, "", sc.target); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(filepath.Join(sc.target.home, "workspace", "log")); string(raw) != fmt.Sprintf("%04d", readTries) {
		t.Errorf("it came back as %q, %v", raw, err)
	}
}
