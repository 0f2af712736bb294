package main

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCallsThatDoNotServe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args, env []string
		code      int
		says      string
	}{
		"help":                     {[]string{"--help"}, nil, 0, "gateway network"},
		"version":                  {[]string{"version"}, nil, 0, "gateway "},
		"--version":                {[]string{"--version"}, nil, 0, "gateway "},
		"help for a command":       {[]string{"serve", "--help"}, nil, 0, "gateway doctor"},
		"--json where it is not":   {[]string{"serve", "--json"}, nil, exitUsage, "gateway: serve --json"},
		"a value of another type":  {nil, []string{"SANDBOX_PIDS=many", "BOOT_TIMEOUT=soon", "SANDBOX_MEMORY=much"}, exitUsage, "SANDBOX_PIDS must be a whole number, such as 1024"},
		"a doctor's bad settings":  {[]string{"doctor"}, []string{"SANDBOX_CPUS=0"}, exitUsage, "✗ configuration: SANDBOX_CPUS must be a number above 0, such as 2"},
		"one too many for doctor":  {[]string{"doctor", "now"}, nil, exitUsage, "doctor now"},
		"an unknown command":       {[]string{"dance"}, nil, exitUsage, "gateway: dance"},
		"too many arguments":       {[]string{"serve", "now"}, nil, exitUsage, "serve now"},
		"a bad configuration":      {nil, []string{"SANDBOX_CPUS=0", "LOG_LEVEL=loud"}, exitUsage, "SANDBOX_CPUS"},
		"the health of nobody":     {[]string{"health"}, []string{"GATEWAY_ADDR=127.0.0.1:1"}, exitFailed, "127.0.0.1:1"},
		"a sealing key that is no": {nil, []string{"SEALING_KEY=short"}, exitUsage, "SEALING_KEY must be 32 bytes in hex or base64, such as"},
		"a bucket without a key":   {nil, []string{"S3_ENDPOINT=https://s3.example.com", "S3_BUCKET=b", "S3_ACCESS_KEY_ID=a", "S3_SECRET_ACCESS_KEY=s"}, exitUsage, "openssl rand -hex 32"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			code := run(t.Context(), c.args, append(c.env, "DATA_DIR="+t.TempDir()), &out, &errs)
			if code != c.code || !strings.Contains(out.String()+errs.String(), c.says) {
				t.Errorf("exit %d, it says %s%s", code, out.String(), errs.String())
			}
		})
	}
}

func TestHealthAsksTheGatewayOfTheSameAddress(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	defer server.Close()
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"health"}, []string{"GATEWAY_ADDR=" + server.Listener.Addr().String()}, &out, &errs)
	if code != 0 {
		t.Fatalf("exit %d, it says %s", code, errs.String())
	}
	if path := <-asked; path != "/health" {
		t.Errorf("it asked for %s", path)
	}
}

func TestAnAddressThatIsTakenIsNamed(t *testing.T) {
	t.Parallel()
	var config net.ListenConfig
	taken, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	dir := t.TempDir()
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"serve"}, []string{"DATA_DIR=" + dir, "GATEWAY_ADDR=" + taken.Addr().String()}, &out, &errs)
	if code != exitFailed || !strings.Contains(errs.String(), "GATEWAY_ADDR "+taken.Addr().String()) {
		t.Errorf("exit %d, it says %s", code, errs.String())
	}
	for _, name := range []string{"gateway.token", "sealing.key"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}
