package lifecycle

import (
	"slices"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/sandbox"
)

func TestRepositoriesThatAreAllowed(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]Repository{
		"https://github.com/a/b.git":                  {URL: "https://github.com/a/b.git", Origin: "https://github.com"},
		"HTTPS://example.test:8443/a":                 {URL: "https://example.test:8443/a", Origin: "https://example.test:8443"},
		"https://user:p%40ss@example.test/a":          {URL: "https://example.test/a", Origin: "https://example.test", Username: "user", Password: "p@ss"},
		"https://ghp_token@example.test/a":            {URL: "https://example.test/a", Origin: "https://example.test", Username: "ghp_token"},
		"ssh://git@example.test:22/a/b":               {URL: "ssh://git@example.test:22/a/b", Origin: "ssh://example.test:22"},
		"ssh://git:secret@example.test/a":             {URL: "ssh://git@example.test/a", Origin: "ssh://example.test"},
		"git@github.com:owner/repo.git":               {URL: "git@github.com:owner/repo.git"},
		"git://172.18.0.1:9418/demo.git":              {URL: "git://172.18.0.1:9418/demo.git", Origin: "git://172.18.0.1:9418"},
		"https://[2001:db8::1]/a":                     {URL: "https://[2001:db8::1]/a", Origin: "https://[2001:db8::1]"},
		"  https://example.test/a\n":                  {URL: "https://example.test/a", Origin: "https://example.test"},
		"https://git.münchen.example:8443/a":          {URL: "https://git.xn--mnchen-3ya.example:8443/a", Origin: "https://git.xn--mnchen-3ya.example:8443"},
		"https://例え.テスト/größe":                        {URL: "https://xn--r8jz45g.xn--zckzah/gr%C3%B6%C3%9Fe", Origin: "https://xn--r8jz45g.xn--zckzah"},
		"git@git.münchen.example:größe/repo":          {URL: "git@git.xn--mnchen-3ya.example:größe/repo"},
		"git@example.test:@scope/repo":                {URL: "git@example.test:@scope/repo"},
		"https://example.test/with%20space/repo.git/": {URL: "https://example.test/with%20space/repo.git/", Origin: "https://example.test"},
	} {
		got, err := ParseRepository(raw, "", DefaultGitProtocols())
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", raw, got, err, want)
		}
	}
}

func TestRepositoriesThatAreRefusedBeforeGitSeesThem(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{
		"-oProxyCommand=sh", "--upload-pack=sh", "ext::sh -c id", "ext::https://x/y", "file:///etc/passwd", "/etc", "../x", "C:/x",
		"http://example.test/a", "ftp://example.test/a", "https://-oProxyCommand=x/a", "ssh://-oProxyCommand=sh/a",
		"ssh://example.test:22x/a", "git@-oProxyCommand=sh:a", "-x@example.test:a", "git@example.test:-x", "https://", "https:///a",
		"https://example.test", "https://example.test/", "https://example.test/a?token=x", "https://example.test/a#x",
		"https://example.test/a\nb", "https://example.test/a b", `https://example.test\a`, "https://u:a%0ab@example.test/x", "ssh://-u@example.test/a",
		"https://example.test/" + strings.Repeat("a", 3000), "https://exa%6dple.test/a", "fd::17/x", " ", " -x", "https://mün chen.test/a", "https://-mü.test/a",
		"git@exa mple.test:a", "git@ext::sh -c id", "git@ext::sh[", "a@::sh[", "git@-mü.test:a",
	} {
		_, err := ParseRepository(raw, "", DefaultGitProtocols())
		if !sandbox.HasCode(err, sandbox.CodeInvalidGitURL) {
			t.Errorf("%q: %v", raw, err)
		}
	}
	_, err := ParseRepository("https://u:hunter2@example.test/a?x", "", DefaultGitProtocols())
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error repeats the password: %v", err)
	}
}

func TestBranches(t *testing.T) {
	t.Parallel()
	for branch, ok := range map[string]bool{
		"main": true, "feature/a-b_c.1": true, "v1.0": true, "größe": true, "a@b": true,
		"@scope/pkg@1.0.0": true, "feat(x)-y": true, "fix!": true, "a,b": true, "#1": true, "日本語": true, "'; rm -rf $HOME; `id`'": false, "$(id)": true,
		" main\n": true, "  ": true, " -x": false, "-": false,
		"-x": false, "--upload-pack=sh": false, "a..b": false, "a b": false, "a@{1}": false, "a\nb": false, "a~1": false, "a:b": false, "x.lock": false, "x/": false,
		strings.Repeat("a", 300): false,
	} {
		_, err := ParseRepository("https://example.test/a", branch, DefaultGitProtocols())
		if (err == nil) != ok {
			t.Errorf("%q: %v", branch, err)
		}
	}
}

func TestCredentialsAreNotInTheCommandAndAreRedacted(t *testing.T) {
	t.Parallel()
	repo, err := ParseRepository("https://user:hunter%202@example.test/a", "main", DefaultGitProtocols())
	if err != nil {
		t.Fatal(err)
	}
	argv, env := repo.Command("/home/user/workspace", DefaultGitProtocols())
	if s := strings.Join(argv, " "); strings.Contains(s, "hunter") || !strings.HasSuffix(s, "--branch main -- https://example.test/a /home/user/workspace") {
		t.Errorf("argv = %q", s)
	}
	if env["GIT_CONFIG_KEY_0"] != "credential.https://example.test.helper" || env["AGENTPOD_GIT_PASSWORD"] != "hunter 2" {
		t.Errorf("env = %v", env)
	}
	for _, said := range []string{"bad hunter 2", "bad hunter%202", "bad hunter+2", "bad Basic dXNlcjpodW50ZXIgMg=="} {
		if got := repo.Redact(said); strings.Contains(got, "hunter") || strings.Contains(got, "dXNlcjpodW50ZXIgMg") {
			t.Errorf("%q stays %q", said, got)
		}
	}
	if env["GIT_CONFIG_GLOBAL"] != "/dev/null" || env["GIT_CONFIG_NOSYSTEM"] != "1" {
		t.Errorf("a config of the home's or the image's has a part in it: %v", env)
	}
	token, err := ParseRepository("https://ghp_token@example.test/a", "", DefaultGitProtocols())
	if err != nil || strings.Contains(token.Redact("for ghp_token"), "ghp_token") {
		t.Errorf("a token as user name is repeated: %v", err)
	}
}

func TestConfigsAreTakenApart(t *testing.T) {
	t.Parallel()
	c, err := ParseConfig([]byte(`{
		"model":"fake/echo",
		"files":[{"type":"agent","name":"helper","extension":"md","content":"x"},{"type":"bogus","name":"z","extension":"md","content":"z"}],
		"agents_md":"# A","auth":{"openai":{"type":"api","key":"k"},"anthropic":{"type":"oauth","refresh":"r","access":"a","expires":1},"bad":{"type":"api"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Files) != 1 || len(c.Auth) != 2 || c.AgentsMD == nil || c.OpenCode["model"] != "fake/echo" || len(c.OpenCode) != 1 {
		t.Errorf("config = %+v", c)
	}
	if len(c.Warnings) != 2 || !strings.Contains(strings.Join(c.Warnings, ""), "bogus") || !strings.Contains(strings.Join(c.Warnings, ""), "bad") {
		t.Errorf("warnings = %q", c.Warnings)
	}
	if _, err := ParseConfig([]byte(`{"x":"[[[[\"[[[` + strings.Repeat("[", 100) + `","y":{"z":[1]}}`)); err != nil {
		t.Errorf("brackets in a string count as nesting: %v", err)
	}
	if n := c.CountWritten([]string{"opencode.json", "AGENTS.md", "auth", "agent/helper.md", "agent/other.md"}); n != 4 {
		t.Errorf("filesWritten = %d", n)
	}
	for name, raw := range map[string]string{
		"a list":                  `[]`,
		"a name with a slash":     `{"files":[{"type":"agent","name":"../x","extension":"md"}]}`,
		"a name with a dot only":  `{"files":[{"type":"agent","name":"..","extension":"md"}]}`,
		"an empty name":           `{"files":[{"type":"agent","name":"","extension":"md"}]}`,
		"a name with a line feed": `{"files":[{"type":"agent","name":"a\nb","extension":"md"}]}`,
		"an extension of its own": `{"files":[{"type":"tool","name":"a","extension":"sh"}]}`,
		"a file twice":            `{"files":[{"type":"tool","name":"a","extension":"ts"},{"type":"tool","name":"a","extension":"ts"}]}`,
		"a provider with a slash": `{"auth":{"../x":{"type":"api","key":"k"}}}`,
		"a nesting without end":   `{"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`,
		"agents_md as a number":   `{"agents_md":1}`,
	} {
		if _, err := ParseConfig([]byte(raw)); !sandbox.HasCode(err, sandbox.CodeInvalidRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAConfigIsLaidOverTheDefaults(t *testing.T) {
	t.Parallel()
	parse := func(raw string) Config {
		c, err := ParseConfig([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	defaults := parse(`{"model":"d/d","provider":{"d":{"npm":"x"}},"agents_md":"default","auth":{"openai":{"type":"api","key":"default"}},
		"files":[{"type":"agent","name":"a","extension":"md","content":"default"}]}`)
	own := parse(`{"model":"o/o","provider":{"o":{}},"auth":{"openai":{"type":"api","key":"own"}},"files":[{"type":"agent","name":"a","extension":"md","content":"own"}]}`)
	merged := own.Over(defaults)
	providers, _ := merged.OpenCode["provider"].(map[string]any)
	if merged.OpenCode["model"] != "o/o" || len(providers) != 2 || *merged.AgentsMD != "default" ||
		len(merged.Files) != 1 || merged.Files[0].Content != "own" || !strings.Contains(string(merged.Auth["openai"]), "own") {
		t.Errorf("merged = %+v", merged)
	}
	if under, _ := defaults.OpenCode["provider"].(map[string]any); len(under) != 1 || strings.Contains(string(defaults.Auth["openai"]), "own") {
		t.Error("the defaults were changed")
	}
}

func TestDirectoriesStayInTheWorkspace(t *testing.T) {
	t.Parallel()
	for dir, want := range map[string]string{
		"": "/home/user/workspace", "/home/user/workspace": "/home/user/workspace", "sub/x": "/home/user/workspace/sub/x",
		"/home/user/workspace/a/../b": "/home/user/workspace/b", "/home/user": "!", "../x": "!", "/etc": "!", "/home/user/workspace2": "!", "a\x00b": "!",
	} {
		got, err := checkDirectory(dir)
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q gives %q, want %q", dir, got, want)
		}
	}
}

func FuzzParseRepository(f *testing.F) {
	for _, s := range []string{"https://a/b", "git@a:b", "ssh://x@y/z", "-x", "ext::a", "https://u:p@h/p"} {
		f.Add(s, "main")
	}
	f.Fuzz(func(t *testing.T, raw, branch string) {
		repo, err := ParseRepository(raw, branch, DefaultGitProtocols())
		if err != nil {
			return
		}
		argv, _ := repo.Command("/w", DefaultGitProtocols())
		i := slices.Index(argv, "--")
		if repo.Commit != "" && argv[5] != repo.Commit {
			t.Errorf("%q gives %q", branch, argv)
		}
		if strings.HasPrefix(argv[i+1], "-") || strings.HasPrefix(repo.Branch, "-") || strings.ContainsAny(repo.URL, "\n\x00 ") {
			t.Errorf("%q %q gives %q", raw, branch, argv)
		}
	})
}
