// Command stub is what the tests run in containers: it listens where a sandbox
// does and does what it is told.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if code, err := strconv.Atoi(os.Getenv("STUB_EXIT")); err == nil {
		fmt.Println("leaving at once")
		os.Exit(code)
	}
	if code, err := strconv.Atoi(os.Getenv("STUB_TERM")); err == nil {
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		go func() {
			<-term
			os.Exit(code)
		}()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/name", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getenv("STUB_NAME")) })
	mux.HandleFunc("/exit", func(_ http.ResponseWriter, req *http.Request) {
		code, _ := strconv.Atoi(req.FormValue("code"))
		os.Exit(code)
	})
	mux.HandleFunc("/log", func(_ http.ResponseWriter, req *http.Request) {
		n, _ := strconv.Atoi(req.FormValue("lines"))
		for i := range n {
			out := os.Stdout
			if i%2 == 1 && req.FormValue("stream") == "" {
				out = os.Stderr
			}
			fmt.Fprintf(out, "%s %d\n", req.FormValue("text"), i)
		}
	})
	mux.HandleFunc("/eat", func(_ http.ResponseWriter, req *http.Request) {
		n, _ := strconv.Atoi(req.FormValue("bytes"))
		b := make([]byte, n)
		for i := 0; i < n; i += 4096 {
			b[i] = 1
		}
		fmt.Println("ate", len(b))
	})
	mux.HandleFunc("/burn", func(_ http.ResponseWriter, _ *http.Request) {
		go func() {
			for {
			}
		}()
	})
	mux.HandleFunc("/connect", func(w http.ResponseWriter, req *http.Request) {
		conn, err := net.DialTimeout("tcp", req.FormValue("addr"), 2*time.Second)
		if err != nil {
			fmt.Fprint(w, "failed: ", err)
			return
		}
		conn.Close()
		fmt.Fprint(w, "connected")
	})
	mux.HandleFunc("/write", func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprint(w, os.WriteFile(req.FormValue("path"), []byte(req.FormValue("text")), 0o600))
	})
	mux.HandleFunc("/read", func(w http.ResponseWriter, req *http.Request) {
		b, err := os.ReadFile(req.FormValue("path"))
		if err != nil {
			fmt.Fprint(w, err)
			return
		}
		w.Write(b)
	})
	mux.HandleFunc("/self", func(w http.ResponseWriter, _ *http.Request) { self(w) })
	for _, port := range []string{":4095", ":4096"} {
		go func() {
			fmt.Fprintln(os.Stderr, http.ListenAndServe(port, mux))
			os.Exit(99)
		}()
	}
	fmt.Println("stub ready")
	select {}
}

// self tells what the process may do.
func self(w http.ResponseWriter) {
	var nofile syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &nofile)
	host, _ := os.Hostname()
	fmt.Fprintf(w, "pid=%d uid=%d host=%s nofile=%d/%d\n", os.Getpid(), os.Getuid(), host, nofile.Cur, nofile.Max)
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "CapEff") || strings.HasPrefix(line, "CapBnd") || strings.HasPrefix(line, "NoNewPrivs") {
			fmt.Fprint(w, strings.Join(strings.Fields(line), ""), "\n")
		}
	}
	for _, dir := range []string{"/", "/home/user", "/tmp", "/run"} {
		err := os.WriteFile(filepath.Join(dir, "probe"), nil, 0o600)
		fmt.Fprintf(w, "write %s=%t\n", dir, err == nil)
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[1] == "/tmp" || f[1] == "/run" {
			fmt.Fprintf(w, "mount %s=%s\n", f[1], f[3])
		}
	}
}
