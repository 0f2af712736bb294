package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/shared/border"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// The names that the login client and its server agreed on.
const (
	sessionCookie = "better-auth.session_token"
	dataCookie    = "better-auth.session_data"
	forgetCookie  = "better-auth.dont_remember"
	tokenHeader   = "set-auth-token"
)

// maxAuthBody bounds the bodies of the login client's routes, in bytes.
const maxAuthBody = 64 << 10

// authError is an error as the login client reads it. An empty Message is sent
// without a body.
type authError struct {
	Message string `json:"message"`
	Code    string `json:"code,omitempty"`

	status     int
	retryAfter time.Duration
}

// Error gives code and message, for logs.
func (e *authError) Error() string { return e.Code + ": " + e.Message }

// explainAuth makes an error for the login client of any error.
// signUpDisabled is the login client's code for a sign-up that is closed.
const signUpDisabled = "EMAIL_PASSWORD_SIGN_UP_DISABLED"

func explainAuth(err error) *authError {
	if e, ok := errors.AsType[*authError](err); ok {
		return e
	}
	if e, ok := errors.AsType[*account.LimitedError](err); ok {
		return &authError{status: http.StatusTooManyRequests, Message: "Too many requests. Please try again later.", Code: "TOO_MANY_REQUESTS", retryAfter: e.RetryAfter}
	}
	if e, ok := errors.AsType[*account.ClosedError](err); ok {
		return &authError{status: http.StatusBadRequest, Message: e.Why, Code: signUpDisabled}
	}
	for _, known := range []struct {
		err           error
		status        int
		code, message string
	}{
		{account.ErrCredentials, http.StatusUnauthorized, "INVALID_EMAIL_OR_PASSWORD", "Invalid email or password"},
		{account.ErrEmailTaken, http.StatusUnprocessableEntity, "USER_ALREADY_EXISTS_USE_ANOTHER_EMAIL", "User already exists. Use another email."},
		{account.ErrEmail, http.StatusBadRequest, "INVALID_EMAIL", "Invalid email"},
		{account.ErrName, http.StatusBadRequest, "VALIDATION_ERROR", "[body.name] Invalid input: the name or the image is too long, or not plain text"},
		{account.ErrPasswordTooShort, http.StatusBadRequest, "PASSWORD_TOO_SHORT", "Password too short"},
		{account.ErrPasswordTooLong, http.StatusBadRequest, "PASSWORD_TOO_LONG", "Password too long"},
		{account.ErrSignUpClosed, http.StatusBadRequest, signUpDisabled, "Email and password sign up is not enabled"},
		{account.ErrBanned, http.StatusForbidden, "BANNED_USER", "You have been banned from this application"},
	} {
		if errors.Is(err, known.err) {
			return &authError{status: known.status, Code: known.code, Message: known.message}
		}
	}
	if e, ok := errors.AsType[*echo.HTTPError](err); ok && (e.Code == http.StatusNotFound || e.Code == http.StatusMethodNotAllowed) {
		return &authError{status: http.StatusNotFound}
	}
	e := explain(err)
	return &authError{status: e.Code.Status(), Code: strings.ToUpper(string(e.Code)), Message: e.Message, retryAfter: e.RetryAfter}
}

// field is a field of a body as the login client's server checks it.
type field struct {
	name     string
	into     any // *string or *bool
	optional bool
}

// readAuth reads a body of the login client, and says what is wrong with it in
// the words of the server that it was written for.
func readAuth(c echo.Context, fields ...field) error {
	raw, err := io.ReadAll(http.MaxBytesReader(c.Response(), c.Request().Body, maxAuthBody))
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return sandbox.Errorf(sandbox.CodeTooLarge, "the request body is larger than %d bytes", tooLarge.Limit)
	}
	if err != nil {
		return sandbox.Errorf(sandbox.CodeInvalidRequest, "the request body could not be read").WithCause(err)
	}
	var body json.RawMessage
	if len(bytes.TrimSpace(raw)) > 0 {
		if err := json.Unmarshal(raw, &body); err != nil {
			return &authError{status: http.StatusBadRequest, Code: "BAD_REQUEST", Message: "Invalid JSON in request body"}
		}
	}
	if kind := kindOf(body); kind != "object" {
		return invalid("[body] Invalid input: expected object, received " + kind)
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(body, &object); err != nil {
		return invalid("[body] Invalid input: expected object")
	}
	var faults []string
	for _, f := range fields {
		value := object[f.name]
		if value == nil && f.optional {
			continue
		}
		want := "string"
		if _, ok := f.into.(*bool); ok {
			want = "boolean"
		}
		kind := kindOf(value)
		if kind == want {
			err = json.Unmarshal(value, f.into)
		}
		if kind != want || err != nil {
			faults = append(faults, "[body."+f.name+"] Invalid input: expected "+want+", received "+kind)
		}
	}
	if len(faults) > 0 {
		return invalid(strings.Join(faults, "; "))
	}
	return nil
}

func invalid(message string) error {
	return &authError{status: http.StatusBadRequest, Code: "VALIDATION_ERROR", Message: message}
}

// kindOf names the type of a JSON value as JavaScript's validators do.
func kindOf(value json.RawMessage) string {
	value = bytes.TrimSpace(value)
	if len(value) == 0 {
		return "undefined"
	}
	switch value[0] {
	case '"':
		return "string"
	case '{':
		return "object"
	case '[':
		return "array"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	default:
		return "number"
	}
}

// userBody is a user on the wire.
type userBody struct {
	ID            string       `json:"id"`
	Name          string       `json:"name"`
	Email         string       `json:"email"`
	EmailVerified bool         `json:"emailVerified"`
	Image         string       `json:"image,omitempty"`
	Role          account.Role `json:"role"`
	Banned        bool         `json:"banned"`
	CreatedAt     sandbox.Time `json:"createdAt"`
	UpdatedAt     sandbox.Time `json:"updatedAt"`
}

func userOf(u account.User) userBody {
	return userBody{
		ID: u.ID, Name: u.Name, Email: u.Email, EmailVerified: u.EmailVerified, Image: u.Image, Role: u.Role, Banned: u.Banned,
		CreatedAt: sandbox.At(u.CreatedAt), UpdatedAt: sandbox.At(u.UpdatedAt),
	}
}

// sessionBody is a session on the wire.
type sessionBody struct {
	ID        string       `json:"id"`
	Token     string       `json:"token"`
	UserID    string       `json:"userId"`
	IPAddress string       `json:"ipAddress"`
	UserAgent string       `json:"userAgent"`
	ExpiresAt sandbox.Time `json:"expiresAt"`
	CreatedAt sandbox.Time `json:"createdAt"`
	UpdatedAt sandbox.Time `json:"updatedAt"`
}

func sessionOf(s account.Signed) sessionBody {
	return sessionBody{
		ID: s.Session.ID, Token: s.Token, UserID: s.User.ID, IPAddress: s.Session.IPAddress, UserAgent: s.Session.UserAgent,
		ExpiresAt: sandbox.At(s.Session.ExpiresAt), CreatedAt: sandbox.At(s.Session.CreatedAt), UpdatedAt: sandbox.At(s.Session.UpdatedAt),
	}
}

func (a *API) authOK(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]bool{"ok": true})
}

func clientOf(c echo.Context) account.Client {
	return account.Client{Address: c.RealIP(), UserAgent: c.Request().UserAgent()}
}

func (a *API) signUp(c echo.Context) error {
	req := account.SignUp{Remember: true}
	err := readAuth(c, field{"name", &req.Name, false}, field{"email", &req.Email, false}, field{"password", &req.Password, false},
		field{"image", &req.Image, true}, field{"rememberMe", &req.Remember, true})
	if err != nil {
		return err
	}
	signed, err := a.Accounts.SignUp(c.Request().Context(), req, clientOf(c))
	if errors.Is(err, account.ErrEmail) {
		return invalid("[body.email] Invalid email address")
	}
	if err != nil {
		return err
	}
	a.giveCookies(c, signed)
	return c.JSON(http.StatusOK, map[string]any{"token": signed.Token, "user": userOf(signed.User)})
}

func (a *API) signIn(c echo.Context) error {
	req := account.SignIn{Remember: true}
	err := readAuth(c, field{"email", &req.Email, false}, field{"password", &req.Password, false}, field{"rememberMe", &req.Remember, true})
	if err != nil {
		return err
	}
	signed, err := a.Accounts.SignIn(c.Request().Context(), req, clientOf(c))
	a.events.signedIn(err)
	if err != nil {
		return err
	}
	a.giveCookies(c, signed)
	return c.JSON(http.StatusOK, map[string]any{"redirect": false, "token": signed.Token, "user": userOf(signed.User)})
}

// signOut ends the session, if there is one; its body does not matter.
func (a *API) signOut(c echo.Context) error {
	if token, _ := a.tokenOf(c.Request()); token != "" {
		if err := a.Accounts.SignOut(c.Request().Context(), token); err != nil {
			return err
		}
		a.streams.signOut(keyOf(token))
		a.Sandboxes.SessionOver()
	}
	a.clearCookies(c)
	return c.JSON(http.StatusOK, map[string]bool{"success": true})
}

func (a *API) getSession(c echo.Context) error {
	signed, err := a.session(c)
	if errors.Is(err, account.ErrNoSession) {
		if _, given := a.tokenOf(c.Request()); given {
			a.clearCookies(c)
		}
		return c.JSON(http.StatusOK, nil)
	}
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"session": sessionOf(signed), "user": userOf(signed.User)})
}

// session returns the session that a request shows, or ErrNoSession. A session
// that was renewed by it gets a new cookie.
func (a *API) session(c echo.Context) (account.Signed, error) {
	token, _ := a.tokenOf(c.Request())
	if token == "" {
		return account.Signed{}, account.ErrNoSession
	}
	signed, renewed, err := a.Accounts.Session(c.Request().Context(), token)
	if err == nil && renewed && !toOpenCode(c.Request()) {
		a.giveCookies(c, signed)
	}
	return signed, err //nolint:wrapcheck // the service says what it was doing
}

// identify returns who sends a request: the user of a session, or the service.
func (a *API) identify(c echo.Context) (caller, error) {
	signOuts := a.streams.signOuts()
	if token, ok := shown(c.Request()); ok {
		user, err := a.Accounts.ServiceUser(c.Request().Context(), token)
		if err == nil {
			return caller{user: user, key: keyOf(token), signOuts: signOuts, valid: func(ctx context.Context) error {
				_, err := a.Accounts.ServiceUser(ctx, token)
				return err //nolint:wrapcheck // the service says what it was doing
			}}, nil
		}
		if !errors.Is(err, account.ErrNoSession) {
			return caller{}, err //nolint:wrapcheck // the service says what it was doing
		}
	}
	signed, err := a.session(c)
	if errors.Is(err, account.ErrNoSession) {
		return caller{}, signInFirst(c)
	}
	_, byToken := shown(c.Request())
	return caller{
		user: signed.User, key: keyOf(signed.Token), sessionID: signed.Session.ID, cookie: !byToken, signOuts: signOuts,
		valid: func(ctx context.Context) error {
			_, err := a.Accounts.Look(ctx, signed.Token)
			return err //nolint:wrapcheck // the service says what it was doing
		},
	}, err
}

// signInFirst refuses a request that nobody may send who is not known.
func signInFirst(c echo.Context) error {
	c.Response().Header().Set("WWW-Authenticate", `Bearer realm="agentpod"`)
	return sandbox.Errorf(sandbox.CodeUnauthorized, "sign in, or give a token as Authorization: Bearer TOKEN")
}

// shown returns the token that a request shows by itself, which no browser adds:
// that of the Authorization header or, on the way to a sandbox's OpenCode, the password
// of OpenCode's own clients, or the parameter that an EventSource must use. A plus that
// was not encoded there comes as a space.
func shown(r *http.Request) (string, bool) {
	if token, ok := bearer(r); ok || !toOpenCode(r) {
		return token, ok
	}
	if password, ok := border.Password(r); ok {
		return password, true
	}
	token := strings.ReplaceAll(r.URL.Query().Get("token"), " ", "+")
	return token, token != ""
}

// bearer returns the token of the Authorization header.
func bearer(r *http.Request) (string, bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	return token, strings.EqualFold(scheme, "Bearer") && token != ""
}

// tokenOf returns the session's token that a request shows, and whether it shows
// any. A token of its own goes before cookies, and may be signed or bare; a cookie
// must be signed. What is signed wrongly is no token.
func (a *API) tokenOf(r *http.Request) (token string, given bool) {
	if token, ok := shown(r); ok {
		if !strings.Contains(token, ".") {
			return token, true
		}
		return a.verified(token), true
	}
	if toOpenCode(r) {
		return "", false // no cookie opens a sandbox
	}
	for _, cookie := range r.CookiesNamed(sessionCookie) {
		given = given || cookie.Value != ""
		if token = a.verified(cookie.Value); token != "" {
			return token, true
		}
	}
	return "", given
}

// verified returns the value of a signed text, which may be percent-encoded.
func (a *API) verified(signed string) string {
	decoded, err := url.PathUnescape(signed)
	if err != nil {
		return ""
	}
	value, _ := a.Accounts.Verify(decoded)
	return value
}

// giveCookies gives a session to the client: a browser keeps the cookie, others
// take the header.
func (a *API) giveCookies(c echo.Context, s account.Signed) {
	signed, age := a.Accounts.Sign(s.Token), 0 // until the browser is closed
	if s.Session.Remember {
		age = int(account.SessionLife / time.Second)
	}
	a.setCookie(c, sessionCookie, url.QueryEscape(signed), age)
	if !s.Session.Remember {
		a.setCookie(c, forgetCookie, url.QueryEscape(a.Accounts.Sign("true")), 0)
	}
	h := c.Response().Header()
	h.Set(tokenHeader, signed)
	if h.Get("Access-Control-Expose-Headers") == "" {
		h.Set("Access-Control-Expose-Headers", tokenHeader)
	}
}

func (a *API) clearCookies(c echo.Context) {
	for _, name := range []string{sessionCookie, dataCookie, forgetCookie} {
		a.setCookie(c, name, "", -1)
	}
}

// setCookie sets a cookie for age seconds; 0 lasts as long as the browser runs,
// and less than that removes it.
func (a *API) setCookie(c echo.Context, name, value string, age int) {
	c.SetCookie(&http.Cookie{ //nolint:gosec // Secure is as the operator serves the API
		Name: name, Value: value, MaxAge: age, Path: "/", HttpOnly: true, Secure: a.settings.Secure, SameSite: http.SameSiteLaxMode,
	})
}
