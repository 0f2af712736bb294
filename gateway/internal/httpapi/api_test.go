package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"go.uber.org/goleak"
	"gopkg.in/yaml.v3"

	"github.com/agentpod/agentpod/gateway/internal/frontpage"
	"github.com/agentpod/agentpod/shared/daemon"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newAPI(log *slog.Logger) *API {
	a, err := New(Settings{Token: "the-token", Hosts: daemon.NewHosts("127.0.0.1:8787", []string{"gw.example.test"})}, Deps{Log: log})
	if err != nil {
		panic(err) // nothing is there twice
	}
	return a
}

func TestTheDocumentHasEveryRouteAndNoOther(t *testing.T) {
	t.Parallel()
	var doc struct {
		Paths map[string]map[string]any
	}
	if err := yaml.Unmarshal(openapiYAML, &doc); err != nil {
		t.Fatal(err)
	}
	var documented, served []string
	for path, item := range doc.Paths {
		for method := range item {
			if method != "parameters" {
				documented = append(documented, strings.ToUpper(method)+" "+path)
			}
		}
	}
	param := regexp.MustCompile(`:(\w+)`)
	for _, r := range newAPI(slog.New(slog.DiscardHandler)).echo.Routes() {
		path := strings.Replace(param.ReplaceAllString(r.Path, "{$1}"), "*", "{path}", 1)
		if strings.HasSuffix(path, "/files") || strings.HasSuffix(path, "/opencode") {
			continue // the same route with an empty path
		}
		if strings.Contains(path, "/opencode/") && !slices.Contains([]string{"GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"}, r.Method) {
			continue // OpenAPI has no word for the rest
		}
		if frontpage.Serves(path) {
			continue // pages for people
		}
		served = append(served, r.Method+" "+path)
	}
	slices.Sort(documented)
	slices.Sort(served)
	if !slices.Equal(documented, slices.Compact(served)) {
		t.Errorf("documented:\n%s\nserved:\n%s", strings.Join(documented, "\n"), strings.Join(served, "\n"))
	}
}

func TestEveryErrorIsOfTheContractsShape(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	a := newAPI(slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
	request := func(method, target, host, token string) *http.Request {
		r := httptest.NewRequestWithContext(t.Context(), method, target, nil)
		r.Host = host
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		return r
	}
	withPassword := func(target, header, value string) *http.Request {
		r := request("GET", target, "localhost", "")
		r.SetBasicAuth("opencode", "the-token")
		if header != "" {
			r.Header.Set(header, value)
		}
		return r
	}
	for name, c := range map[string]struct {
		request *http.Request
		status  int
		code    sandbox.Code
	}{
		"the token as a password elsewhere":    {withPassword("/sandboxes", "", ""), 401, sandbox.CodeUnauthorized},
		"the token as a password in a browser": {withPassword("/sandbox/a/opencode/session", "Sec-Fetch-Site", "none"), 401, sandbox.CodeUnauthorized},
		"the token as a password of a page":    {withPassword("/sandbox/a/opencode/session", "Origin", "http://localhost"), 401, sandbox.CodeUnauthorized},
		"the token as a password of an image":  {withPassword("/sandbox/a/opencode/session", "Sec-Fetch-Dest", "image"), 401, sandbox.CodeUnauthorized},
		"an unknown route":                     {request("GET", "/nope", "localhost", "the-token"), 404, sandbox.CodeRouteNotFound},
		"a wrong method":                       {request("PATCH", "/sandbox", "localhost", "the-token"), 405, sandbox.CodeMethodNotAllowed},
		"no token":                             {request("GET", "/sandboxes", "localhost", ""), 401, sandbox.CodeUnauthorized},
		"a wrong token":                        {request("GET", "/sandboxes", "localhost", "the-token2"), 401, sandbox.CodeUnauthorized},
		"a foreign host":                       {request("GET", "/health", "evil.test", "the-token"), 403, sandbox.CodeForbiddenHost},
		"an unknown route alone":               {request("GET", "/nope", "localhost", ""), 401, sandbox.CodeUnauthorized},
		"a dot segment":                        {request("GET", "/sandbox/a/%2e%2e/b", "gw.example.test:9", "the-token"), 400, sandbox.CodeInvalidPath},
		"a limit that is none":                 {request("GET", "/sandboxes?limit=x", "localhost", "the-token"), 400, sandbox.CodeInvalidRequest},
		"a limit beyond the top":               {request("GET", "/sandboxes?limit=101", "localhost", "the-token"), 400, sandbox.CodeInvalidRequest},
		"a status that is none":                {request("GET", "/sandboxes?status=x", "localhost", "the-token"), 400, sandbox.CodeInvalidRequest},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			a.ServeHTTP(w, c.request)
			var body sandbox.ErrorResponse
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != c.status || body.Code != c.code || body.Error == "" {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			if w.Header().Get(sandbox.ErrorHeader) != string(c.code) || w.Header().Get("X-Request-Id") == "" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("headers %v", w.Header())
			}
		})
	}
	if strings.Contains(logged.String(), "the-token") {
		t.Error("the token is in the log")
	}
}

func TestOpenCodesOwnClientsPresentTheTokenAsAPassword(t *testing.T) {
	t.Parallel()
	basic := base64.StdEncoding.EncodeToString([]byte("opencode:the+token"))
	const below = "/sandbox/a/opencode/pty/x/connect"
	for name, c := range map[string]struct {
		target  string
		headers []string
		want    string
	}{
		"a Bearer":                       {"/sandboxes", []string{"Authorization", "bearer  the+token "}, "the+token"},
		"a password":                     {below, []string{"Authorization", "Basic " + basic}, "the+token"},
		"a password from Node":           {below, []string{"Authorization", "Basic " + basic, "Sec-Fetch-Mode", "cors"}, "the+token"},
		"a password from a page":         {below, []string{"Authorization", "Basic " + basic, "Origin", "http://localhost"}, ""},
		"a password from a browser":      {below, []string{"Authorization", "Basic " + basic, "Sec-Fetch-Site", "none"}, ""},
		"a password of an image":         {below, []string{"Authorization", "Basic " + basic, "Sec-Fetch-Dest", "image"}, ""},
		"a password elsewhere":           {"/sandboxes", []string{"Authorization", "Basic " + basic}, ""},
		"a parameter":                    {below + "?auth_token=" + url.QueryEscape(basic), nil, "the+token"},
		"a parameter that is not quoted": {below + "?auth_token=" + basic, nil, "the+token"},
		"a parameter elsewhere":          {"/sandboxes?auth_token=" + url.QueryEscape(basic), nil, ""},
		"a parameter that is no Base64":  {below + "?auth_token=the-token!", nil, ""},
		"a parameter beside a password":  {below + "?auth_token=" + url.QueryEscape(basic), []string{"Authorization", "Basic b3RoZXI6b3RoZXI="}, "other"},
		"nothing":                        {below, nil, ""},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, c.target, nil)
		for i := 0; i < len(c.headers); i += 2 {
			r.Header.Set(c.headers[i], c.headers[i+1])
		}
		if got := presented(r); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestTheFiguresAreForWhoHasTheToken(t *testing.T) {
	t.Parallel()
	a := newAPI(slog.New(slog.DiscardHandler))
	for _, token := range []string{"", "the-token"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil)
		r.Host = "localhost"
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		shown := strings.Contains(w.Body.String(), `http_requests_total{method="GET",route="none",status="401"} 1`)
		if shown != (token != "") || shown != (w.Code == http.StatusOK) {
			t.Errorf("with token %q: %d %s", token, w.Code, w.Body)
		}
	}
}

func TestWhatIsNotMeantForTheCallerStaysInTheLog(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	a := newAPI(slog.New(slog.NewJSONHandler(&logged, nil)))
	w := httptest.NewRecorder()
	c := a.echo.NewContext(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/x", nil), w)
	a.fail(sandbox.Errorf(sandbox.CodeInternal, "something").WithCause(hiddenError{}), c)
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "behind the scenes") || !strings.Contains(logged.String(), "behind the scenes") {
		t.Errorf("%d %s, log %s", w.Code, w.Body, logged.String())
	}
	w = httptest.NewRecorder()
	c = a.echo.NewContext(httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/x", nil), w)
	a.fail(&sandbox.Error{Code: sandbox.CodeNoCapacity, Message: "full", RetryAfter: 1500 * time.Millisecond}, c)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "2" {
		t.Errorf("%d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
}

type hiddenError struct{}

func (hiddenError) Error() string { return "behind the scenes" }

func TestBodies(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body     string
		optional bool
		code     sandbox.Code
	}{
		"an object with unknown fields": {`{"id":"a","zzz":1}`, false, ""},
		"nothing where it may be":       {``, true, ""},
		"nothing where it may not be":   {``, false, sandbox.CodeInvalidRequest},
		"half an object":                {`{"id":"sk-secret`, false, sandbox.CodeInvalidRequest},
		"a field of another type":       {`{"id":{"a":"sk-secret"}}`, false, sandbox.CodeInvalidRequest},
		"two objects":                   {`{} {}`, false, sandbox.CodeInvalidRequest},
		"too much":                      {`{"id":"` + strings.Repeat("a", 200) + `"}`, false, sandbox.CodeTooLarge},
		"very deep":                     {strings.Repeat("[", 90), false, sandbox.CodeInvalidRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/sandbox", strings.NewReader(c.body))
			var req sandbox.CreateRequest
			err := decode(echo.New().NewContext(r, httptest.NewRecorder()), 100, c.optional, &req)
			if c.code == "" && err != nil || c.code != "" && !sandbox.HasCode(err, c.code) {
				t.Fatalf("error %v, want %q", err, c.code)
			}
			if err != nil && strings.Contains(err.Error(), "sk-secret") {
				t.Errorf("the error repeats the body: %v", err)
			}
		})
	}
}

func TestAsyncIsWhatPreferSays(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]bool{
		"respond-async": true, "wait=5, Respond-Async": true, "respond-async; x=1": true, "respond": false, "": false,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		r.Header.Set("Prefer", value)
		if wantsAsync(r) != want {
			t.Errorf("%q: %v", value, !want)
		}
	}
}
