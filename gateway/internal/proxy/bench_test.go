package proxy_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/agentpod/agentpod/gateway/internal/proxy"
)

func respond(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, `{"healthy":true}`)
}

func benchmark(b *testing.B, client *http.Client, url string) {
	b.ReportAllocs()
	for b.Loop() {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, nil)
		if err != nil {
			b.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
}

func BenchmarkDirect(b *testing.B) {
	url := "http://" + backend(b, respond)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	benchmark(b, client, url)
}

func BenchmarkProxy(b *testing.B) {
	f := serve(b, backend(b, respond), always, proxy.Settings{}, nil)
	benchmark(b, f.Client(), f.URL+prefix+"/global/health")
}
