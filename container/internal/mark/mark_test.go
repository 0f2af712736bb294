package mark_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/container/internal/mark"
	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func keeper(t *testing.T, home string) *mark.Keeper {
	t.Helper()
	k, err := mark.Open(home, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { must(t, k.Close()) })
	return k
}

func wantMark(t *testing.T, k *mark.Keeper, want guest.MarkStatus) {
	t.Helper()
	if got, err := k.Status(); err != nil || got != want {
		t.Errorf("the mark is %+v, %v; want %+v", got, err, want)
	}
}

// content is what the file holds, empty if it cannot be read.
func content(home string) string {
	raw, _ := os.ReadFile(filepath.Join(home, mark.File))
	return string(raw)
}

func given() guest.Mark { return guest.Mark{Incarnation: "abc", Generation: 3} }

const inFile = `{"incarnation":"abc","generation":3}`

func TestAMarkOutlivesTheProgramThatWroteIt(t *testing.T) {
	home := t.TempDir()
	first := keeper(t, home)
	wantMark(t, first, guest.MarkStatus{})
	must(t, first.Give(given()))
	wantMark(t, first, guest.MarkStatus{Mark: given(), Given: true})
	second := keeper(t, home)
	wantMark(t, second, guest.MarkStatus{Mark: given()})
	next := guest.Mark{Incarnation: "abc", Generation: 4}
	must(t, second.Give(next))
	wantMark(t, second, guest.MarkStatus{Mark: next, Given: true})
	entries, err := os.ReadDir(home)
	if err != nil || len(entries) != 1 {
		t.Errorf("the home has %v, %v", entries, err)
	}
}

func TestWhatIsNoMarkCountsAsNoneAndGivesWay(t *testing.T) {
	write := func(content string) func(*testing.T, string) {
		return func(t *testing.T, name string) {
			t.Helper()
			must(t, os.WriteFile(name, []byte(content), 0o600))
		}
	}
	for name, put := range map[string]func(t *testing.T, name string){
		"an empty file":             write(""),
		"no JSON":                   write("{"),
		"another JSON":              write("[]"),
		"no incarnation":            write(`{"generation":3}`),
		"an incarnation of 129":     write(`{"incarnation":"` + strings.Repeat("x", 129) + `","generation":3}`),
		"an incarnation with lines": write(`{"incarnation":"a\nb","generation":3}`),
		"a negative generation":     write(`{"incarnation":"abc","generation":-1}`),
		"a generation of 2^64":      write(`{"incarnation":"abc","generation":18446744073709551616}`),
		"a mark and more":           write(inFile + `{}`),
		"a mark of 5 KiB":           write(inFile + strings.Repeat(" ", 5<<10)),
		"a huge file": func(t *testing.T, name string) {
			t.Helper()
			must(t, os.WriteFile(name, []byte(inFile), 0o600))
			must(t, os.Truncate(name, 1<<40))
		},
		"a folder": func(t *testing.T, name string) {
			t.Helper()
			must(t, os.MkdirAll(filepath.Join(name, "full"), 0o700))
		},
		"a link to a mark": func(t *testing.T, name string) {
			t.Helper()
			must(t, os.WriteFile(name+".copy", []byte(inFile), 0o600))
			must(t, os.Symlink(mark.File+".copy", name))
		},
		"a link out": func(t *testing.T, name string) {
			t.Helper()
			must(t, os.Symlink("/proc/self/environ", name))
		},
		"a link to itself": func(t *testing.T, name string) {
			t.Helper()
			must(t, os.Symlink(mark.File, name))
		},
		"a FIFO": func(t *testing.T, name string) {
			t.Helper()
			must(t, unix.Mkfifo(name, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			put(t, filepath.Join(home, mark.File))
			k := keeper(t, home)
			wantMark(t, k, guest.MarkStatus{})
			must(t, k.Give(given()))
			wantMark(t, keeper(t, home), guest.MarkStatus{Mark: given()})
			// And the same again while it is kept.
			must(t, os.Remove(filepath.Join(home, mark.File)))
			_ = os.RemoveAll(filepath.Join(home, mark.File+".copy"))
			put(t, filepath.Join(home, mark.File))
			wantMark(t, k, guest.MarkStatus{Mark: given(), Given: true})
			k.Renew()
			if got := content(home); got != inFile {
				t.Errorf("the file has %q", got)
			}
		})
	}
}

func TestAMarkThatCannotBeIsRefusedAndTheFormerStays(t *testing.T) {
	home := t.TempDir()
	k := keeper(t, home)
	must(t, k.Give(given()))
	for name, m := range map[string]guest.Mark{
		"no incarnation":        {Generation: 1},
		"a long incarnation":    {Incarnation: strings.Repeat("x", 129)},
		"a line break":          {Incarnation: "a\n"},
		"no UTF-8":              {Incarnation: "\xff"},
		"a negative generation": {Incarnation: "a", Generation: -1},
	} {
		if err := k.Give(m); !sandbox.HasCode(err, sandbox.CodeInvalidRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantMark(t, k, guest.MarkStatus{Mark: given(), Given: true})
	if got := content(home); got != inFile {
		t.Errorf("the file has %q", got)
	}
}

// A disk that fails must not pass for one without a mark: its sandbox would be
// taken back to its last snapshot.
func TestAHomeThatCannotBeReadIsAnErrorAndNotNoMark(t *testing.T) {
	home := t.TempDir()
	k, err := mark.Open(home, slog.New(slog.DiscardHandler))
	must(t, err)
	must(t, k.Close())
	if got, err := k.Status(); !sandbox.HasCode(err, sandbox.CodeInternal) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := k.Give(given()); !sandbox.HasCode(err, sandbox.CodeInternal) {
		t.Errorf("got %v", err)
	}
}

func TestAGivenMarkIsPutBackWithinSeconds(t *testing.T) {
	home := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		k, err := mark.Open(home, slog.New(slog.DiscardHandler))
		must(t, err)
		// Nothing is kept before a mark was given.
		time.Sleep(10 * time.Second)
		if got := content(home); got != "" {
			t.Errorf("the file has %q", got)
		}
		must(t, k.Give(given()))
		before, err := os.Stat(filepath.Join(home, mark.File))
		must(t, err)
		time.Sleep(10 * time.Second)
		if after, err := os.Stat(filepath.Join(home, mark.File)); err != nil || !os.SameFile(before, after) {
			t.Errorf("a file that did not change was written again: %v", err)
		}
		for name, harm := range map[string]func() error{
			"removed":     func() error { return os.Remove(filepath.Join(home, mark.File)) },
			"overwritten": func() error { return os.WriteFile(filepath.Join(home, mark.File), []byte("x"), 0o600) },
		} {
			must(t, harm())
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if got := content(home); got != inFile {
				t.Errorf("%s: the file has %q", name, got)
			}
		}
		must(t, k.Close())
		must(t, os.Remove(filepath.Join(home, mark.File)))
		time.Sleep(10 * time.Second)
		if _, err := os.Lstat(filepath.Join(home, mark.File)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// noise is what a log got, by level.
type noise struct {
	slog.Handler
	mu    sync.Mutex
	lines bytes.Buffer
}

func (n *noise) Handle(ctx context.Context, r slog.Record) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slog.NewTextHandler(&n.lines, &slog.HandlerOptions{Level: slog.LevelDebug}).Handle(ctx, r)
}

func TestWhatIsDoneForTheMarkIsLoggedAtDebugOnly(t *testing.T) {
	home := t.TempDir()
	log := &noise{Handler: slog.NewTextHandler(&bytes.Buffer{}, &slog.HandlerOptions{Level: slog.LevelDebug})}
	k, err := mark.Open(home, slog.New(log))
	must(t, err)
	must(t, k.Give(given()))
	must(t, os.Remove(filepath.Join(home, mark.File)))
	k.Renew()
	must(t, k.Close())
	k.Renew() // which fails
	got := log.lines.String()
	if strings.Count(got, "level=DEBUG") != 2 || strings.Count(got, "\n") != 2 {
		t.Errorf("the log has %s", got)
	}
}
