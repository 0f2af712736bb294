package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/api/internal/store"
	"github.com/agentpod/agentpod/api/internal/store/storetest"
)

const (
	ada      = `{"name":"Ada","email":"ada@example.com","password":"password1"}`
	adaLogin = `{"email":"ada@example.com","password":"password1"}`
)

// send serves a request with headers given as NAME, VALUE, NAME, VALUE, …
func (w world) send(t testing.TB, method, path, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	for pair := range slices.Chunk(headers, 2) {
		if pair[0] == "Host" {
			r.Host = pair[1]
		}
		r.Header.Add(pair[0], pair[1])
	}
	resp := w.do(r)
	raw, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp, string(raw)
}

// signUp makes Ada's account and returns her signed token.
func (w world) signUp(t testing.TB) string {
	t.Helper()
	resp, body := w.send(t, "POST", authRoot+"sign-up/email", ada)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("signing up: %d %s", resp.StatusCode, body)
	}
	return resp.Header.Get(tokenHeader)
}

// signedIn tells whether a request with these headers has a session.
func (w world) signedIn(t testing.TB, headers ...string) bool {
	t.Helper()
	resp, body := w.send(t, "GET", authRoot+"get-session", "", headers...)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("get-session: %d %s", resp.StatusCode, body)
	}
	return strings.TrimSpace(body) != "null"
}

func cookie(token string) string { return sessionCookie + "=" + url.QueryEscape(token) }

// codeOf returns the code of an error's body.
func codeOf(t testing.TB, body string) string {
	t.Helper()
	var e struct{ Code string }
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	return e.Code
}

func sqlite(t testing.TB) *store.Store { return storetest.Open(t, storetest.FileURL(t)) }

func TestTenThousandTriesAreLimited(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		email, address func(i int) string
		most           int
	}{
		"on one account from many addresses": {
			func(int) string { return "ada@example.com" },
			func(i int) string { return fmt.Sprintf("198.51.%d.%d", i>>8, i&255) }, account.DefaultPerAccount().Burst,
		},
		"on many accounts from one address": {
			func(i int) string { return fmt.Sprintf("u%d@example.com", i) },
			func(int) string { return "203.0.113.9" }, account.DefaultPerAddress().Burst,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, sqlite(t), options{})
			token := w.signUp(t)
			seen := map[int]int{}
			var last *http.Response
			for i := range 10_000 {
				r := httptest.NewRequestWithContext(t.Context(), "POST", authRoot+"sign-in/email",
					strings.NewReader(fmt.Sprintf(`{"email":%q,"password":"guess number %d"}`, c.email(i), i)))
				r.RemoteAddr = c.address(i) + ":4000"
				last = w.do(r)
				seen[last.StatusCode]++
			}
			if seen[401] > c.most || seen[401]+seen[429] != 10_000 {
				t.Errorf("%v, want %d tries let through at most", seen, c.most)
			}
			if last.Header.Get("Retry-After") == "" || last.Header.Get("Retry-After") != last.Header.Get("X-Retry-After") {
				t.Errorf("%v", last.Header)
			}
			if !w.signedIn(t, "Cookie", cookie(token)) {
				t.Error("who is signed in was thrown out")
			}
			w.clock.pass(time.Hour)
			if resp, body := w.send(t, "POST", authRoot+"sign-in/email", adaLogin); resp.StatusCode != http.StatusOK {
				t.Errorf("an hour later: %d %s", resp.StatusCode, body)
			}
		})
	}
}

func TestSigningInOftenIsNotLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	w.signUp(t)
	for range 60 {
		if resp, body := w.send(t, "POST", authRoot+"sign-in/email", adaLogin); resp.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
}

func TestAnUnknownUserTakesAsLongAsAWrongPassword(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{account: func(s *account.Settings) {
		s.PerAccount, s.PerAddress = account.Limit{Burst: 1000, Every: time.Second}, account.Limit{Burst: 1000, Every: time.Second}
	}})
	w.signUp(t)
	// In turns, so that whatever else the machine does slows both; the fastest of
	// many is what the work takes.
	const tries = 25
	known, unknown := time.Hour, time.Hour
	for range tries {
		for email, fastest := range map[string]*time.Duration{"ada@example.com": &known, "nobody@example.com": &unknown} {
			began := time.Now()
			resp, _ := w.send(t, "POST", authRoot+"sign-in/email", `{"email":"`+email+`","password":"wrong password"}`)
			if *fastest = min(*fastest, time.Since(began)); resp.StatusCode != http.StatusUnauthorized {
				t.Fatalf("%d", resp.StatusCode)
			}
		}
	}
	if ratio := float64(known) / float64(unknown); ratio < 0.5 || ratio > 2 {
		t.Errorf("a known user takes %s, an unknown one %s", known, unknown)
	}
}

func TestASessionIsRenewedAfterADayAndEndsAfterSeven(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{})
		token := w.signUp(t)
		ask := func() (renewed, there bool) {
			resp, body := w.send(t, "GET", authRoot+"get-session", "", "Cookie", cookie(token))
			return strings.Contains(resp.Header.Get("Set-Cookie"), "Max-Age=604800") && resp.Header.Get(tokenHeader) == token, !strings.HasPrefix(body, "null")
		}
		for _, step := range []struct {
			name           string
			pass           time.Duration
			renewed, there bool
		}{
			{"before a day", 23 * time.Hour, false, true},
			{"after a day", 2 * time.Hour, true, true},
			{"right after", 0, false, true},
			{"six days later", 6 * 24 * time.Hour, true, true},
			{"six more, longer than its first seven", 6 * 24 * time.Hour, true, true},
			{"after seven days of nothing", 7 * 24 * time.Hour, false, false},
		} {
			w.clock.pass(step.pass)
			if renewed, there := ask(); renewed != step.renewed || there != step.there {
				t.Errorf("%s: renewed %v, there %v", step.name, renewed, there)
			}
		}
	})
}

func TestASessionThatIsNotRememberedEndsAfterADay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	w.signUp(t)
	resp, _ := w.send(t, "POST", authRoot+"sign-in/email", `{"email":"ada@example.com","password":"password1","rememberMe":false}`)
	token := resp.Header.Get(tokenHeader)
	w.clock.pass(23 * time.Hour)
	if !w.signedIn(t, "Authorization", "Bearer "+token) {
		t.Error("it ended early")
	}
	w.clock.pass(2 * time.Hour)
	if w.signedIn(t, "Authorization", "Bearer "+token) {
		t.Error("it did not end")
	}
}

func TestSigningInTakesNoTokenThatTheClientBrings(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	planted := w.signUp(t)
	resp, _ := w.send(t, "POST", authRoot+"sign-in/email", adaLogin, "Cookie", cookie(planted))
	if got := resp.Header.Get(tokenHeader); got == "" || got == planted {
		t.Errorf("signed in under %q", got)
	}
}

func TestTokensAreStoredByTheirHashAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	token, _, _ := strings.Cut(w.signUp(t), ".")
	if _, _, err := w.store.Accounts().SessionByHash(t.Context(), token); !errors.Is(err, account.ErrNotFound) {
		t.Errorf("the token itself is a key: %v", err)
	}
}

func TestOnlyWhatWeSignedIsACookie(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	signed := w.signUp(t)
	token, _, _ := strings.Cut(signed, ".")
	other := newWorld(t, w.store, options{account: func(s *account.Settings) { s.Secret = bytes.Repeat([]byte("x"), 32) }})
	for name, c := range map[string]struct {
		headers []string
		in      bool
	}{
		"the cookie":                            {[]string{"Cookie", cookie(signed)}, true},
		"a forged one before it":                {[]string{"Cookie", cookie("x.y") + "; " + cookie(signed)}, true},
		"the bare token as a cookie":            {[]string{"Cookie", cookie(token)}, false},
		"a wrong signature":                     {[]string{"Cookie", cookie(token + ".AAAA")}, false},
		"no percent-encoding":                   {[]string{"Cookie", sessionCookie + "=%zz"}, false},
		"the token as Bearer":                   {[]string{"Authorization", "bearer " + token}, true},
		"the signed token as Bearer":            {[]string{"Authorization", "Bearer " + signed}, true},
		"the encoded token as Bearer":           {[]string{"Authorization", "Bearer " + url.QueryEscape(signed)}, true},
		"a wrongly signed token as Bearer":      {[]string{"Authorization", "Bearer " + token + ".AAAA"}, false},
		"a wrong Bearer, whatever the cookie":   {[]string{"Authorization", "Bearer nonsense", "Cookie", cookie(signed)}, false},
		"another scheme":                        {[]string{"Authorization", "Basic " + token}, false},
		"the service credential has no session": {[]string{"Authorization", "Bearer " + serviceToken}, false},
	} {
		if got := w.signedIn(t, c.headers...); got != c.in {
			t.Errorf("%s: %v", name, got)
		}
	}
	if other.signedIn(t, "Cookie", cookie(signed)) {
		t.Error("a cookie of another secret is taken")
	}
}

func TestWhoMayPassTheBorder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	token := w.signUp(t)
	closed := newWorld(t, w.store, options{account: func(s *account.Settings) { s.SignUp, s.APIToken = false, "" }})
	for name, c := range map[string]struct {
		world        world
		method, path string
		body         string
		headers      []string
		status       int
		code         string
	}{
		"health is everybody's":                    {w, "GET", "/health", "", nil, 200, ""},
		"ready":                                    {w, "GET", "/readyz", "", nil, 200, ""},
		"a stranger":                               {w, "GET", "/api/v2/nope", "", nil, 401, "unauthorized"},
		"a user":                                   {w, "GET", "/api/v2/nope", "", []string{"Cookie", cookie(token)}, 404, "route_not_found"},
		"the service":                              {w, "GET", "/api/v2/nope", "", []string{"Authorization", "Bearer " + serviceToken}, 404, "route_not_found"},
		"a wrong service credential":               {w, "GET", "/api/v2/nope", "", []string{"Authorization", "Bearer " + serviceToken + "x"}, 401, "unauthorized"},
		"an empty credential where none is set":    {closed, "GET", "/api/v2/nope", "", []string{"Authorization", "Bearer "}, 401, "unauthorized"},
		"the credential where none is set":         {closed, "GET", "/api/v2/nope", "", []string{"Authorization", "Bearer " + serviceToken}, 401, "unauthorized"},
		"a wrong method":                           {w, "PUT", "/health", "", nil, 405, "method_not_allowed"},
		"a foreign host":                           {w, "GET", "/health", "", []string{"Host", "evil.test"}, 403, "forbidden_host"},
		"a dot segment":                            {w, "GET", "/api/v2/%2e%2e/x", "", []string{"Cookie", cookie(token)}, 400, "invalid_path"},
		"a foreign page":                           {w, "POST", "/api/v2/nope", "", []string{"Cookie", cookie(token), "Origin", "https://evil.example"}, 403, "forbidden_origin"},
		"a foreign page without an Origin":         {w, "POST", "/api/v2/nope", "", []string{"Cookie", cookie(token), "Sec-Fetch-Site", "cross-site"}, 403, "forbidden_origin"},
		"a page of the same site":                  {w, "POST", "/api/v2/nope", "", []string{"Cookie", cookie(token), "Sec-Fetch-Site", "same-site"}, 403, "forbidden_origin"},
		"a foreign page that opens a WebSocket":    {w, "GET", "/api/v2/nope", "", []string{"Cookie", cookie(token), "Upgrade", "websocket", "Origin", "https://evil.example"}, 403, "forbidden_origin"},
		"the frontend opens a WebSocket":           {w, "GET", "/api/v2/nope", "", []string{"Cookie", cookie(token), "Upgrade", "websocket", "Origin", frontend}, 404, "route_not_found"},
		"the frontend":                             {w, "POST", "/api/v2/nope", "", []string{"Cookie", cookie(token), "Origin", frontend, "Sec-Fetch-Site", "cross-site"}, 404, "route_not_found"},
		"the API's own page":                       {w, "POST", "/api/v2/nope", "", []string{"Cookie", cookie(token), "Sec-Fetch-Site", "same-origin"}, 404, "route_not_found"},
		"a sandboxed page of the API's own origin": {w, "POST", authRoot + "sign-out", "", []string{"Cookie", cookie(token), "Origin", "null", "Sec-Fetch-Site", "cross-site"}, 403, "INVALID_ORIGIN"},
		"curl":                          {w, "POST", "/api/v2/nope", "", []string{"Cookie", cookie(token)}, 404, "route_not_found"},
		"sign-up where it is closed":    {closed, "POST", authRoot + "sign-up/email", ada, nil, 400, "EMAIL_PASSWORD_SIGN_UP_DISABLED"},
		"too much of a body":            {w, "POST", authRoot + "sign-in/email", `{"email":"` + strings.Repeat("x", maxAuthBody) + `"}`, nil, 413, "PAYLOAD_TOO_LARGE"},
		"a list":                        {w, "POST", authRoot + "sign-in/email", `[]`, nil, 400, "VALIDATION_ERROR"},
		"no body":                       {w, "POST", authRoot + "sign-in/email", ``, nil, 400, "VALIDATION_ERROR"},
		"an object for a password":      {w, "POST", authRoot + "sign-in/email", `{"email":"ada@example.com","password":{"$ne":""}}`, nil, 400, "VALIDATION_ERROR"},
		"a role that one gives oneself": {w, "POST", authRoot + "sign-up/email", `{"name":"E","email":"eve@example.com","password":"password1","role":"admin","id":"x","banned":false}`, nil, 200, ""},
		"a name with a line break":      {w, "POST", authRoot + "sign-up/email", `{"name":"a\r\nb","email":"b@example.com","password":"password1"}`, nil, 400, "VALIDATION_ERROR"},
		"a name with a NUL":             {w, "POST", authRoot + "sign-up/email", `{"name":"a\u0000","email":"b@example.com","password":"password1"}`, nil, 400, "VALIDATION_ERROR"},
		"SQL for an address":            {w, "POST", authRoot + "sign-in/email", `{"email":"' OR 1=1 --","password":"password1"}`, nil, 400, "INVALID_EMAIL"},
		"the service's user":            {w, "POST", authRoot + "sign-in/email", `{"email":"service@localhost.invalid","password":"password1"}`, nil, 401, "INVALID_EMAIL_OR_PASSWORD"},
	} {
		resp, body := c.world.send(t, c.method, c.path, c.body, c.headers...)
		if resp.StatusCode != c.status || c.code != "" && codeOf(t, body) != c.code {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
		if c.code == "forbidden_origin" && !strings.Contains(body, "CORS_ORIGINS") {
			t.Errorf("%s: it does not say what to do: %s", name, body)
		}
		if resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("X-Frame-Options") != "DENY" || resp.Header.Get("X-Request-Id") == "" ||
			resp.Header.Get("Strict-Transport-Security") != "" || resp.Header.Get("Content-Security-Policy") == "" {
			t.Errorf("%s: headers %v", name, resp.Header)
		}
	}
	eve, _, err := w.store.Accounts().UserByEmail(t.Context(), "eve@example.com")
	if err != nil || eve.Role != account.RoleUser || eve.ID == "x" {
		t.Errorf("%+v, %v", eve, err)
	}
}

func TestOnlyTheFrontendsReadAnswersWithCookies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	for _, origin := range []string{"", frontend, "https://evil.example", "null", frontend + ".evil.example"} {
		ours := origin == frontend
		headers := []string{"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type"}
		if origin != "" {
			headers = append(headers, "Origin", origin)
		}
		resp, _ := w.send(t, "GET", "/health", "", headers...)
		if got := resp.Header.Get("Access-Control-Allow-Origin"); ours != (got == frontend) || !ours && got != "" {
			t.Errorf("%q may read: %q", origin, got)
		}
		if (resp.Header.Get("Access-Control-Allow-Credentials") == "true") != ours || !slices.Contains(resp.Header.Values("Vary"), "Origin") {
			t.Errorf("%q: %v", origin, resp.Header)
		}
		if origin == "" {
			continue
		}
		resp, _ = w.send(t, "OPTIONS", "/api/v2/agents/task", "", headers...)
		if resp.StatusCode != http.StatusNoContent || (resp.Header.Get("Access-Control-Allow-Methods") != "") != ours {
			t.Errorf("%q asks beforehand: %d %v", origin, resp.StatusCode, resp.Header)
		}
	}
	if _, err := New(Settings{Origins: []string{"localhost:5173"}}, Deps{}); err == nil {
		t.Error("an origin without a scheme is taken")
	}
}

func TestCookiesAreSecureBehindTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{api: func(s *Settings) { s.Secure = true }})
	resp, _ := w.send(t, "POST", authRoot+"sign-up/email", ada)
	if c := resp.Header.Get("Set-Cookie"); !strings.Contains(c, "; Secure") || !strings.Contains(c, "; HttpOnly") {
		t.Errorf("%s", c)
	}
	if resp.Header.Get("Strict-Transport-Security") == "" {
		t.Error("nothing says that TLS is needed")
	}
}

func TestAnAddressIsBelievedOfAKnownProxyAlone(t *testing.T) {
	t.Parallel()
	s := sqlite(t)
	behind := newWorld(t, s, options{api: func(set *Settings) { set.Proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }})
	direct := newWorld(t, s, options{})
	direct.signUp(t)
	for name, c := range map[string]struct {
		world      world
		peer, want string
	}{
		"from the proxy":           {behind, "192.0.2.7:1", "203.0.113.5"},
		"from somebody else":       {behind, "198.51.100.1:1", "198.51.100.1"},
		"from the loopback":        {behind, "127.0.0.1:1", "127.0.0.1"},
		"where there is no proxy":  {direct, "192.0.2.7:1", "192.0.2.7"},
		"from a private neighbour": {behind, "10.0.0.1:1", "10.0.0.1"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", authRoot+"sign-in/email", strings.NewReader(adaLogin))
		r.RemoteAddr = c.peer
		r.Header.Set("X-Forwarded-For", "1.2.3.4, 203.0.113.5")
		_, body := c.world.send(t, "GET", authRoot+"get-session", "", "Authorization", "Bearer "+c.world.do(r).Header.Get(tokenHeader))
		if !strings.Contains(body, `"ipAddress":"`+c.want+`"`) {
			t.Errorf("%s: %s", name, body)
		}
	}
}

func TestABannedUserIsOutAtOnce(t *testing.T) {
	t.Parallel()
	s := sqlite(t)
	w := newWorld(t, s, options{})
	accounts := s.Accounts()
	// Nothing bans yet but whoever works on the database.
	w.signUp(t)
	_, hash, err := accounts.UserByEmail(t.Context(), "ada@example.com")
	must(t, err)
	_, err = accounts.CreateUser(t.Context(), account.User{ID: "bad", Name: "B", Email: "bad@example.com", Role: account.RoleUser, Banned: true}, hash)
	must(t, err)
	resp, body := w.send(t, "POST", authRoot+"sign-in/email", `{"email":"bad@example.com","password":"password1"}`)
	if resp.StatusCode != http.StatusForbidden || codeOf(t, body) != "BANNED_USER" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestTheFirstAdminIsMadeOnce(t *testing.T) {
	t.Parallel()
	storetest.Each(t, server, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, options{account: func(set *account.Settings) { set.SignUp = false }})
		for i, want := range []bool{true, false} {
			made, err := w.api.Accounts.EnsureAdmin(t.Context(), "Admin", fmt.Sprintf("Admin%d@localhost.test", i), "printed password")
			if err != nil || made != want {
				t.Fatalf("try %d: %v, %v", i, made, err)
			}
		}
		resp, body := w.send(t, "POST", authRoot+"sign-in/email", `{"email":"admin0@localhost.test","password":"printed password"}`)
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"role":"admin"`) {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
}

func TestNoSecretIsLogged(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	w := newWorld(t, sqlite(t), options{log: &logged})
	token := w.signUp(t)
	w.send(t, "GET", authRoot+"get-session", "", "Cookie", cookie(token))
	w.send(t, "GET", "/api/v2/nope?token="+token, "", "Authorization", "Bearer "+token)
	w.send(t, "POST", authRoot+"sign-in/email", `{"email":"ada@example.com","password":"password2"}`)
	bare, _, _ := strings.Cut(token, ".")
	for _, secret := range []string{token, bare, "password1", "password2", serviceToken} {
		if strings.Contains(logged.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	if !strings.Contains(logged.String(), "/api/v2/nope") {
		t.Error("nothing is in the log")
	}
}

func TestWhatIsNotMeantForTheCallerStaysInTheLog(t *testing.T) {
	t.Parallel()
	own, err := storetest.Start()
	must(t, err)
	defer func() {
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	}()
	var logged bytes.Buffer
	w := newWorld(t, storetest.Open(t, own.URL(t)), options{log: &logged})
	must(t, own.Down())
	for path, status := range map[string]int{authRoot + "get-session": 503, "/api/v2/nope": 503, "/readyz": 503} {
		resp, body := w.send(t, "GET", path, "", "Authorization", "Bearer some-token")
		if resp.StatusCode != status || strings.Contains(body, "agentpod-pg") || strings.Contains(body, "connect") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if !strings.Contains(logged.String(), "connect") {
		t.Error("the cause is not in the log")
	}
	resp, _ := w.send(t, "GET", "/health", "")
	if resp.StatusCode != http.StatusOK {
		t.Errorf("health without a database: %d", resp.StatusCode)
	}
}

func TestACallerWhoLeavesGetsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	ctx, leave := context.WithCancel(t.Context())
	leave()
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, "POST", authRoot+"sign-in/email", strings.NewReader(adaLogin)))
	if rec.Body.Len() > 0 {
		t.Errorf("%s", rec.Body)
	}
}

func TestABodyThatNobodyReadsIsBoundedToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, sqlite(t), options{})
	token := w.signUp(t)
	huge := strings.Repeat("x", 2<<20)
	for _, path := range []string{authRoot + "sign-out", "/api/providers/openai/set-default", "/api/v2/agents/task/none/cancel"} {
		if resp, body := w.send(t, "POST", path, huge, "Authorization", "Bearer "+token); resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}
