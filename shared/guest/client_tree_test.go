package guest_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func line(path, rest string) string {
	return fmt.Sprintf(`{"path":%q,"mode":420,%s}`+"\n", base64.StdEncoding.EncodeToString([]byte(path)), rest)
}

const (
	aFile = `"type":"file","size":1`
	end1  = `{"end":true,"entries":1,"skipped":0}` + "\n"
)

func TestAHostileListingIsRefused(t *testing.T) {
	for name, body := range map[string]func(io.Writer){
		"a listing that is cut off":     text(line("a", aFile)),
		"an end that counts otherwise":  text(line("a", aFile) + line("b", aFile) + end1),
		"a negative count of skipped":   text(`{"end":true,"skipped":-1}`),
		"an absolute path":              text(line("/etc/passwd", aFile) + end1),
		"a path that leads out":         text(line("a/../../b", aFile) + end1),
		"a path with an empty element":  text(line("a//b", aFile) + end1),
		"an empty path":                 text(line("", aFile) + end1),
		"a path that ends with a slash": text(line("a/", aFile) + end1),
		"a path with NUL":               text(line("a\x00b", aFile) + end1),
		"a path that is too deep":       text(line(strings.Repeat("a/", 600)+"a", aFile) + end1),
		"a name that is too long":       text(line(strings.Repeat("a", 256), aFile) + end1),
		"a device":                      text(line("a", `"type":"device"`) + end1),
		"a negative size":               text(line("a", `"type":"file","size":-1`) + end1),
		"a folder with a size":          text(line("a", `"type":"directory","size":1`) + end1),
		"a link without a target":       text(line("a", `"type":"symlink"`) + end1),
		"a file with a target":          text(line("a", `"type":"file","target":"YQ=="`) + end1),
		"a mode that cannot be":         text(line("a", `"type":"file","mode":4096`) + end1),
		"no JSON":                       text("{\n"),
		"an error":                      text(`{"end":true,"error":"no\u0007"}`),
		"an endless listing":            func(w io.Writer) { flood(w, line("a", aFile)) },
		"an endless line":               func(w io.Writer) { flood(w, strings.Repeat("a", 4096)) },
		"endless empty lines":           func(w io.Writer) { flood(w, "\n") },
	} {
		t.Run(name, func(t *testing.T) {
			c := fake(t, func(w http.ResponseWriter, _ *http.Request) { body(w) })
			_, err := c.Tree(t.Context(), 100, func(guest.TreeEntry) error { return nil })
			wantCode(t, err, sandbox.CodeGuestFailed)
		})
	}
}

func text(s string) func(io.Writer) {
	return func(w io.Writer) { _, _ = io.WriteString(w, s) }
}

func TestAnEntryTravelsWhole(t *testing.T) {
	t.Parallel()
	for _, want := range []guest.TreeEntry{
		{Path: "a\n\"\xff/b", Type: guest.TreeFile, Mode: 0o7777, Size: 1 << 40, ModifiedNs: -1, ChangedNs: 1<<63 - 1, Inode: 1<<64 - 1, Database: true},
		{Path: "l", Type: guest.TreeSymlink, Target: "\xff\n/../"},
		{Path: "d", Type: guest.TreeDirectory, Mode: 0},
	} {
		got, err := guest.ParseTreeEntry(want.AppendJSON(nil))
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestAnErrorOfTheCallersFunctionIsReturnedAsItIs(t *testing.T) {
	stop := errors.New("stop")
	c := fake(t, func(w http.ResponseWriter, _ *http.Request) { flood(w, line("a", aFile)) })
	if _, err := c.Tree(t.Context(), 100, func(guest.TreeEntry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

func frame(kind guest.Frame, payload string) string {
	b := make([]byte, guest.FrameHeader)
	guest.PutFrameHeader(b, kind, len(payload))
	return string(b) + payload
}

func fileHead(kind guest.Frame, index uint32, status byte, size int64) string {
	return frame(kind, string(guest.FileFrame{Index: index, Status: status, Size: size}.Append(nil)))
}

func TestAHostileAnswerToAReadIsRefused(t *testing.T) {
	const first, done, data, last = guest.FrameFile, guest.FrameDone, guest.FrameData, guest.FrameEnd
	whole := fileHead(first, 0, 0, 3) + frame(data, "abc") + fileHead(done, 0, 0, 3)
	huge := string(binary.BigEndian.AppendUint32([]byte{byte(data)}, 1<<31))
	for name, body := range map[string]func(io.Writer){
		"nothing":                          text(""),
		"no end":                           text(whole),
		"more than was asked for":          text(whole + fileHead(first, 1, 0, 0)),
		"another file":                     text(fileHead(first, 7, 0, 3)),
		"data without a file":              text(frame(data, "abc")),
		"more bytes than promised":         text(fileHead(first, 0, 0, 3) + frame(data, "abcd")),
		"fewer bytes than promised":        text(fileHead(first, 0, 0, 3) + frame(data, "ab") + fileHead(done, 0, 0, 2) + frame(last, "")),
		"a size beyond the limit":          text(fileHead(first, 0, 0, 1001)),
		"a negative size":                  text(fileHead(first, 0, 0, -1)),
		"a size of exabytes":               text(fileHead(first, 0, 0, 1<<62)),
		"a status that is not known":       text(fileHead(first, 0, 9, 0)),
		"a frame of gigabytes":             text(fileHead(first, 0, 0, 3) + huge),
		"a frame that is not known":        text(fileHead(first, 0, 0, 3) + frame('?', "x")),
		"a head that is short":             text(frame(first, "abc")),
		"a head that is long":              text(frame(first, strings.Repeat("a", 100_000))),
		"it breaks off in a file":          text(fileHead(first, 0, 0, 3) + "D\x00\x00\x00\x03a"),
		"empty data without end":           func(w io.Writer) { _, _ = io.WriteString(w, fileHead(first, 0, 0, 3)); flood(w, frame(data, "")) },
		"another file's end":               text(fileHead(first, 0, 0, 3) + frame(data, "abc") + fileHead(done, 1, 0, 3)),
		"a status, and data all the same":  text(fileHead(first, 0, guest.TreeGone, 0) + frame(data, "abc")),
		"a file that begins before an end": text(fileHead(first, 0, 0, 3) + fileHead(first, 1, 0, 0)),
	} {
		t.Run(name, func(t *testing.T) {
			c := fake(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				body(w)
			})
			err := c.ReadTree(t.Context(), []string{"a"}, 1000, func(_ string, size int64, r io.Reader) error {
				if n, _ := io.Copy(io.Discard, r); n > size {
					t.Errorf("%d bytes of %d", n, size)
				}
				return nil
			})
			wantCode(t, err, sandbox.CodeGuestFailed)
		})
	}
}

func TestTheLimitOfARead(t *testing.T) {
	c := fake(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for i := range uint32(2) {
			_, _ = io.WriteString(w, fileHead(guest.FrameFile, i, 0, 3)+frame(guest.FrameData, "abc")+fileHead(guest.FrameDone, i, 0, 3))
		}
		_, _ = io.WriteString(w, frame(guest.FrameEnd, ""))
	})
	ignore := func(string, int64, io.Reader) error { return nil }
	if err := c.ReadTree(t.Context(), []string{"a", "b"}, 6, ignore); err != nil {
		t.Errorf("six bytes: %v", err)
	}
	wantCode(t, c.ReadTree(t.Context(), []string{"a", "b"}, 5, ignore), sandbox.CodeGuestFailed)
	wantCode(t, c.ReadTree(t.Context(), []string{"../b"}, 5, ignore), sandbox.CodeInvalidRequest)
}

func TestAHostileAnswerToARestoreIsRefused(t *testing.T) {
	entries := func(yield func(guest.RestoreEntry, error) bool) {
		for i := range 1000 {
			e := guest.RestoreEntry{
				TreeEntry: guest.TreeEntry{Path: fmt.Sprint(i), Type: guest.TreeFile, Size: 100_000},
				Content:   strings.NewReader(strings.Repeat("a", 100_000)),
			}
			if !yield(e, nil) {
				return
			}
		}
	}
	for name, handle := range map[string]http.HandlerFunc{
		"it says it is done before it read":  func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"files":1000}`) },
		"other counts":                       answer(`{"files":999,"bytes":100000000}`),
		"no JSON":                            answer(`<html>`),
		"an endless answer":                  func(w http.ResponseWriter, _ *http.Request) { flood(w, strings.Repeat(" ", 4096)) },
		"a code that is not its own to give": failing(`{"error":"x","code":"owner_conflict"}`),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := fake(t, handle).RestoreTree(t.Context(), entries)
			wantCode(t, err, sandbox.CodeGuestFailed)
		})
	}
	t.Run("it takes nothing and says nothing", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		stop := make(chan struct{})
		c := fake(t, func(http.ResponseWriter, *http.Request) { <-stop })
		defer close(stop)
		_, err := c.RestoreTree(ctx, entries)
		wantCode(t, err, sandbox.CodeDeadline)
	})
}

func answer(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, body)
	}
}

func failing(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, body)
	}
}
