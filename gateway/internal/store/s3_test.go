package store_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/agentpod/agentpod/gateway/internal/store"
	"github.com/agentpod/agentpod/gateway/internal/store/storetest"
)

func newS3(t *testing.T, settings store.S3Settings) *store.S3 {
	t.Helper()
	s, err := store.NewS3(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// prefixes returns a function that opens a new prefix of a server's bucket each time.
func prefixes(server *storetest.Server) func(t *testing.T) store.Store {
	var count atomic.Int64
	return func(t *testing.T) store.Store {
		t.Helper()
		settings := server.Settings()
		settings.Prefix = fmt.Sprintf("run/%d/", count.Add(1))
		settings.PartSize = 5 << 20
		return newS3(t, settings)
	}
}

func TestS3Conforms(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	open := prefixes(server)
	storetest.Run(t, open)
	storetest.RunCounter(t, open)
}

// certificate makes a certificate of its own for a host, and returns its files.
func certificate(t *testing.T, host string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.ParseIP(host)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(folder, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
}

func TestS3OverTLSTrustsItsCAFile(t *testing.T) {
	cert, key := certificate(t, "127.0.0.1")
	server := storetest.StartServer(t, storetest.ServerOptions{CertFile: cert, KeyFile: key})
	settings := server.Settings()
	settings.PartSize = 5 << 20
	if err := newS3(t, settings).Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the CA file: %v", err)
	}
	settings.CAFile = cert
	s := newS3(t, settings)
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := storetest.Content(1, 11<<20) // in parts
	if _, err := s.Put(t.Context(), "large", struct{ io.Reader }{bytes.NewReader(want)}, -1, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, _ := storetest.MustGet(t, s, "large"); !bytes.Equal(got, want) {
		t.Error("it came back as something else")
	}
}

func TestS3FindsABucketByHostName(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{Domain: "s3.test"})
	settings := server.Settings()
	settings.Addressing = store.AddressingHost
	settings.Region = "" // asked for
	s := newS3(t, settings)
	s.DialTo(server.Address)
	storetest.MustPut(t, s, "by/host name", []byte("x"), store.PutOptions{IfAbsent: true})
	if got, _ := storetest.MustGet(t, s, "by/host name"); string(got) != "x" {
		t.Errorf("it is %q", got)
	}
	if _, err := os.Stat(filepath.Join(server.Folder, "by", "host name")); err != nil {
		t.Errorf("it is not in the bucket: %v", err)
	}
}

func TestS3SaysWhatIsWrong(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	for name, c := range map[string]struct {
		change func(*store.S3Settings)
		want   string
	}{
		"no such bucket":    {func(s *store.S3Settings) { s.Bucket = "absent" }, `there is no bucket "absent"`},
		"unknown key":       {func(s *store.S3Settings) { s.AccessKey = "nobody" }, `does not know the access key "nobody"`},
		"wrong secret":      {func(s *store.S3Settings) { s.SecretKey = "guessed-secret" }, "the secret key does not belong to the access key"},
		"wrong region":      {func(s *store.S3Settings) { s.Region = "mars-north-1" }, `the region "mars-north-1" is not the one`},
		"not a TLS server":  {func(s *store.S3Settings) { s.Endpoint = strings.Replace(s.Endpoint, "http", "https", 1) }, "HTTP response to HTTPS client"},
		"nobody is there":   {func(s *store.S3Settings) { s.Endpoint = "http://127.0.0.1:1" }, "connection refused"},
		"no such host":      {func(s *store.S3Settings) { s.Endpoint = "http://store.invalid" }, "store.invalid"},
		"a prefix too deep": {func(s *store.S3Settings) { s.Prefix = strings.Repeat("x", 1000) + "/" }, "with the prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			settings := server.Settings()
			c.change(&settings)
			err := newS3(t, settings).Probe(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), settings.SecretKey) {
				t.Errorf("the error is: %v", err)
			}
			if !errors.Is(err, store.ErrAway) && !errors.Is(err, store.ErrKey) {
				t.Error("it is neither the store's fault nor the key's")
			}
			t.Log(err)
		})
	}
}

func TestS3RefusesSettingsThatCannotWork(t *testing.T) {
	good := store.S3Settings{Endpoint: "https://s3.example.com", Bucket: "b", AccessKey: "a", SecretKey: "s"}
	if _, err := store.NewS3(good); err != nil {
		t.Fatal(err)
	}
	noPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(noPEM, []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*store.S3Settings)
		want   string
	}{
		"no scheme":           {func(s *store.S3Settings) { s.Endpoint = "s3.example.com" }, "must be a URL"},
		"a path":              {func(s *store.S3Settings) { s.Endpoint += "/bucket" }, "must be a URL"},
		"a password":          {func(s *store.S3Settings) { s.Endpoint = "https://user:hidden@s3.example.com" }, "must be a URL"},
		"no bucket":           {func(s *store.S3Settings) { s.Bucket = "" }, "bucket is not set"},
		"no secret":           {func(s *store.S3Settings) { s.SecretKey = "" }, "must both be set"},
		"a prefix without /":  {func(s *store.S3Settings) { s.Prefix = "p" }, "does not end in '/'"},
		"a prefix with ..":    {func(s *store.S3Settings) { s.Prefix = "../" }, "element"},
		"tiny parts":          {func(s *store.S3Settings) { s.PartSize = 1 }, "part size"},
		"unknown addressing":  {func(s *store.S3Settings) { s.Addressing = "dns" }, "addressing"},
		"a CA file for http":  {func(s *store.S3Settings) { s.Endpoint, s.CAFile = "http://x", noPEM }, "not https"},
		"a CA file of no use": {func(s *store.S3Settings) { s.CAFile = noPEM }, "no PEM certificate"},
		"no CA file":          {func(s *store.S3Settings) { s.CAFile = noPEM + "x" }, "reading the S3 CA file"},
	} {
		settings := good
		c.change(&settings)
		if _, err := store.NewS3(settings); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: the error is: %v", name, err)
		}
	}
}

// deaf is an S3 server of a few lines that ignores a header, or answers it with
// a status.
func deaf(t *testing.T, header string, status int) *httptest.Server {
	t.Helper()
	var mu sync.Mutex
	objects := map[string]string{}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		have, ok := objects[r.URL.Path]
		etag := fmt.Sprintf("%q", fmt.Sprintf("%x", have))
		switch r.Method {
		case http.MethodPut:
			absent, match := r.Header.Get("If-None-Match"), r.Header.Get("If-Match")
			if r.Header.Get(header) != "" && status != 0 {
				w.WriteHeader(status)
				_, _ = io.WriteString(w, "<Error><Code>NotImplemented</Code><Message>A header you provided implies functionality that is not implemented</Message></Error>")
				return
			}
			if header != "If-None-Match" && absent != "" && ok || header != "If-Match" && match != "" && match != etag {
				w.WriteHeader(http.StatusPreconditionFailed)
				return
			}
			body, _ := io.ReadAll(r.Body)
			objects[r.URL.Path] = string(body)
			w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprintf("%x", body)))
		case http.MethodDelete:
			delete(objects, r.URL.Path)
			w.WriteHeader(http.StatusNoContent)
		default:
			if r.URL.Query().Has("list-type") {
				_, _ = io.WriteString(w, "<ListBucketResult>")
				for path, content := range objects {
					_, key, _ := strings.Cut(path[1:], "/")
					_, _ = fmt.Fprintf(w, "<Contents><Key>%s</Key><Size>%d</Size></Contents>", key, len(content))
				}
				_, _ = io.WriteString(w, "</ListBucketResult>")
				return
			}
			w.Header().Set("ETag", etag)
			w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
			_, _ = io.WriteString(w, have)
		}
	})
	fake := httptest.NewServer(handler)
	t.Cleanup(fake.Close)
	return fake
}

func TestAServerWithoutConditionalWritesIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		header string
		status int
		want   string
	}{
		"it ignores If-None-Match":  {"If-None-Match", 0, "If-None-Match: *"},
		"it ignores If-Match":       {"If-Match", 0, "If-Match that does not fit"},
		"it refuses If-None-Match":  {"If-None-Match", 501, "it says so itself"},
		"it refuses If-Match":       {"If-Match", 501, "it says so itself"},
		"it knows both, and is let": {"X-None", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fake := deaf(t, c.header, c.status)
			s := newS3(t, store.S3Settings{Endpoint: fake.URL, Region: "auto", Bucket: "bucket", AccessKey: "a", SecretKey: "s"})
			err := s.Probe(t.Context())
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, store.ErrNoConditions) || !errors.Is(err, store.ErrRefused) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), fake.URL) {
				t.Errorf("the error is: %v", err)
			}
			t.Log(err)
		})
	}
}

func TestAServerSaysItsTimeToWhoeverAsks(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	settings := server.Settings()
	settings.SecretKey = "not the secret of the test"
	s := newS3(t, settings)
	at, err := s.Clock(t.Context())
	if err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("%s, %v", at, err)
	}
	server.Stop(t)
	if _, err := s.Clock(t.Context()); err == nil || !strings.Contains(err.Error(), server.Endpoint) {
		t.Errorf("%v", err)
	}
}

func TestS3AbortsAndSweepsUploadsThatDoNotEnd(t *testing.T) {
	server := storetest.StartServer(t, storetest.ServerOptions{})
	settings := server.Settings()
	settings.Prefix, settings.PartSize = "p/", 5<<20
	s := newS3(t, settings)
	uploads := func() int {
		t.Helper()
		found := 0
		for _, name := range filesBelow(t, server.Folder) {
			if strings.Contains(name, ".sgwtmp/multipart/") {
				found++
			}
		}
		return found
	}
	broken := errors.New("the body broke")
	body := io.MultiReader(bytes.NewReader(storetest.Content(1, 12<<20)), readerFunc(func([]byte) (int, error) {
		if uploads() == 0 {
			t.Error("this test does not see uploads")
		}
		return 0, broken
	}))
	if _, err := s.Put(t.Context(), "aborted", body, -1, store.PutOptions{}); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if left := uploads(); left != 0 {
		t.Errorf("a put that failed left %d files of parts", left)
	}
	// The server goes away in the middle, so that nothing can be aborted.
	body = io.MultiReader(bytes.NewReader(storetest.Content(1, 12<<20)), readerFunc(func([]byte) (int, error) {
		server.Stop(t)
		return 0, broken
	}))
	if _, err := s.Put(t.Context(), "left behind", body, -1, store.PutOptions{}); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	server.Start(t)
	if uploads() == 0 {
		t.Fatal("nothing was left behind")
	}
	if n, err := s.Sweep(t.Context(), time.Hour); err != nil || n != 0 {
		t.Errorf("swept %d uploads that are not an hour old, %v", n, err)
	}
	if n, err := s.Sweep(t.Context(), 0); err != nil || n != 1 {
		t.Errorf("swept %d uploads of 1, %v", n, err)
	}
	if left := uploads(); left != 0 {
		t.Errorf("after sweeping there are %d files of parts", left)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
