package sandbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestIDsAreWhatTheContractAllows(t *testing.T) {
	t.Parallel()
	for id, ok := range map[string]bool{
		"a": true, "task-V1StGXR8_Z5jdHi6B-myT": true, "A_b-9": true, strings.Repeat("a", 63): true, "a-": true,
		"": false, "-a": false, "_a": false, "a.b": false, "a/b": false, "a b": false, "ä": false, "a\n": false, strings.Repeat("a", 64): false,
		"www": false, "api": false, "admin": false, "root": false, "system": false, "cloudflare": false, "workers": false, "WWW": true,
	} {
		if err := sandbox.CheckID(id); (err == nil) != ok || err != nil && !sandbox.HasCode(err, sandbox.CodeInvalidID) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestPathsThatCouldMeanAnotherPathAreRefused(t *testing.T) {
	t.Parallel()
	for path, ok := range map[string]bool{
		"": true, "/": true, "/a//b": true, "/a/...": true, "/a..b/c": true, "/%20/%C3%BC": true, "/a%2Fb": true, "/100%": true, "/%zz": true, "/a;x=1": true,
		"/..": false, "/a/../b": false, "/./a": false, "/%2e%2e": false, "/%2E.": false, "/.%2e/": false, "/a%2f..%2fb": false,
		"/%252e%252e": false, "/%25252e%2525252e": false, `/a\b`: false, "/%5c": false, "/%255C": false, "/a%00": false, "/%0a": false, "/%7f": false,
		"/..;/a": false, "/..;x=1/a": false, "/a\tb": false, "/" + strings.Repeat("%25", 1) + strings.Repeat("25", 20) + "2e": false,
	} {
		if err := sandbox.CheckPath(path); (err == nil) != ok {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func FuzzNoDecodingOfACheckedPathHasADotSegment(f *testing.F) {
	for _, s := range []string{"/a", "/%2e%2e", "/%252e", `\`, "/..;"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if sandbox.CheckPath(path) != nil {
			return
		}
		for range 10 {
			for seg := range strings.SplitSeq(path, "/") {
				if seg == "." || seg == ".." {
					t.Fatalf("%q", path)
				}
			}
			next, err := url.PathUnescape(path)
			if err != nil || next == path {
				return
			}
			path = next
		}
	})
}

func TestEveryCodeHasAStatus(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "error.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Code") {
			return true
		}
		literal, ok := spec.Values[0].(*ast.BasicLit)
		if !ok {
			return true
		}
		text, _ := strconv.Unquote(literal.Value)
		code := sandbox.Code(text)
		found++
		if code.Status() == http.StatusInternalServerError && code != sandbox.CodeInternal {
			t.Errorf("%s is not in the table", code)
		}
		return true
	})
	if found < 30 {
		t.Errorf("only %d codes were found", found)
	}
	if sandbox.Code("unheard_of").Status() != http.StatusInternalServerError {
		t.Error("an unknown code is not 500")
	}
}

func TestAWordAmongAURLsCredentialsStaysInWhatGitSaid(t *testing.T) {
	for _, tc := range []struct{ raw, said, want string }{
		{"https://git@example.test/a", "git: not found", "git: not found"},
		{"https://a-token-1:x-oauth-basic@example.test/a", "a-token-1 needs x-oauth-basic", "*** needs x-oauth-basic"},
		{"https://me:password@example.test/a", "no password, but me:password", "no password, but ***"},
		{"https://me:a-token-1@example.test/a", "me has a-token-1", "me has ***"},
	} {
		repo, err := sandbox.ParseRepository(tc.raw, "", sandbox.DefaultGitProtocols())
		if err != nil {
			t.Fatal(err)
		}
		if got := repo.Redact(tc.said); got != tc.want {
			t.Errorf("%s: %q becomes %q, want %q", tc.raw, tc.said, got, tc.want)
		}
	}
}

func TestErrorsKeepTheirCodeAndCause(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("outer: %w", sandbox.Errorf(sandbox.CodeNameTaken, "taken").WithCause(io.EOF))
	if sandbox.CodeOf(err) != sandbox.CodeNameTaken || !sandbox.HasCode(err, sandbox.CodeNameTaken) || !errors.Is(err, io.EOF) ||
		!errors.Is(err, &sandbox.Error{Code: sandbox.CodeNameTaken}) || errors.Is(err, &sandbox.Error{Code: sandbox.CodeConflict}) {
		t.Errorf("%v", err)
	}
	if sandbox.CodeOf(io.EOF) != sandbox.CodeInternal || sandbox.HasCode(nil, sandbox.CodeInternal) {
		t.Error("what has no code")
	}
}

func TestTimesTravelInUTCWithMilliseconds(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 23, 9, 44, 57, 995_400_000, time.FixedZone("", 7200))
	raw, err := json.Marshal([]sandbox.Time{sandbox.At(at), {}})
	if err != nil || string(raw) != `["2026-11-23T07:44:57.995Z",null]` {
		t.Errorf("%s %v", raw, err)
	}
}

func TestWhatPassesByItselfIsNeitherAMistakeNorAnEnd(t *testing.T) {
	passing := map[sandbox.Code]bool{}
	for _, code := range []sandbox.Code{
		sandbox.CodeBackendAway, sandbox.CodeEngineAway, sandbox.CodeStoreAway, sandbox.CodeShuttingDown, sandbox.CodeSettling,
		sandbox.CodeNoCapacity, sandbox.CodeOpenCodeDown, sandbox.CodeTooManyRequests, sandbox.CodeDeadline,
	} {
		passing[code] = true
		if !code.Passing() {
			t.Errorf("%s passes by itself", code)
		}
		if status := code.Status(); status < 500 && status != http.StatusTooManyRequests {
			t.Errorf("%s is a %d, which says that the caller is at fault", code, status)
		}
	}
	for _, code := range []sandbox.Code{
		"", "no_such_code", sandbox.CodeInternal, sandbox.CodeInvalidRequest, sandbox.CodeSandboxNotFound, sandbox.CodeSandboxDeleted, sandbox.CodeBootFailed,
		sandbox.CodeOpenCodeFailed, sandbox.CodeTurnDeadline, sandbox.CodeCloneFailed, sandbox.CodeConfigRejected, sandbox.CodeUnsupported, sandbox.CodeUnauthorized,
		sandbox.CodeImageMissing, sandbox.CodeEngineTooOld, sandbox.CodeDiskFull, sandbox.CodeOutOfMemory, sandbox.CodeWorkspaceLost, sandbox.CodeBackendFailed,
	} {
		if code.Passing() {
			t.Errorf("%q does not pass by itself", code)
		}
	}
}
