package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestReadyFilesAppearWhileItServesAndGoAtTheEnd(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	if err := os.WriteFile(ready, []byte("stale"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"-addr", "127.0.0.1:0", "-ready-file", ready}, in, io.Discard)
		_ = in.Close()
		ended <- err
	}()
	// The first thing it prints comes after the files are in place.
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err, <-ended)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	var got readiness
	if err := json.Unmarshal(readFile(t, ready), &got); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got.URL, "http://127.0.0.1:") || !strings.HasPrefix(got.GitURL, "git://127.0.0.1:") {
		t.Errorf("%+v", got)
	}
	if config := readFile(t, ready+".config"); !json.Valid(config) || !bytes.Contains(config, []byte(got.URL)) {
		t.Errorf("config %s", config)
	}
	if url := readFile(t, ready+".git"); string(url) != got.GitURL+"\n" {
		t.Errorf("git URL %q", url)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it did not end")
	}
	if left, err := filepath.Glob(ready + "*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestCallsThatDoNotServe(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"help":                       {[]string{"-help"}, 0, "-git-addr"},
		"the version":                {[]string{"--version"}, 0, "model "},
		"an unexpected argument":     {[]string{"extra"}, exitUsage, `unexpected argument "extra"; see model -help`},
		"an unknown flag":            {[]string{"-dance"}, exitUsage, "-dance"},
		"a folder that is relative":  {[]string{"-workspace", "here"}, exitUsage, "must be an absolute path, such as /"},
		"an address that is no such": {[]string{"-addr", "127.0.0.1:0", "-git-addr", "nowhere.invalid:1:2"}, exitFailed, "listen for the git"},
	} {
		var said bytes.Buffer
		code := exitCode(run(t.Context(), c.args, &said, &said), &said)
		if code != c.code || !strings.Contains(said.String(), c.says) {
			t.Errorf("%s: exit %d, it says %s", name, code, said.String())
		}
	}
}

func TestHelpDocumentsTheLanguage(t *testing.T) {
	var b bytes.Buffer
	if err := run(t.Context(), []string{"-help"}, io.Discard, &b); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, want := range []string{"-ready-file", "write NAME: CONTENT", "stall [DURATION]"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("help lacks %q", want)
		}
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
