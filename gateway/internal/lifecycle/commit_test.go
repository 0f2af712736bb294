package lifecycle

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The command is run as it is, with git itself, against a repository of the test's.
func TestWhateverGitAllowsIsClonedAndCheckedOut(t *testing.T) {
	t.Parallel()
	origin := filepath.Join(t.TempDir(), "origin")
	git := func(dir string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@example.test"}, args...)...) //nolint:gosec // the test's own
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git(".", "init", "-q", "-b", "main", origin)
	git(origin, "commit", "-q", "--allow-empty", "-m", "first")
	first := git(origin, "rev-parse", "HEAD")
	git(origin, "commit", "-q", "--allow-empty", "-m", "second")
	// On no branch any more, as after a push by force.
	git(origin, "commit", "-q", "--allow-empty", "-m", "lost")
	lost := git(origin, "rev-parse", "HEAD")
	git(origin, "reset", "-q", "--hard", "HEAD~1")

	for _, branch := range []string{"@scope/pkg@1.0.0", "feat(x)-y", "fix!", "a,b", "#1", "@", "größe", "$(id)"} {
		git(origin, "update-ref", "refs/heads/"+branch, first)
		repo, err := ParseRepository("https://example.test/a", branch, DefaultGitProtocols())
		if err != nil {
			t.Errorf("%s: %v", branch, err)
			continue
		}
		repo.URL = "file://" + origin
		argv, _ := repo.Command(filepath.Join(t.TempDir(), "work"), nil)
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil { //nolint:gosec // it is what is tested
			t.Errorf("%s: %v\n%s", branch, err, out)
		}
	}

	for name, tc := range map[string]struct {
		commit, refuse, want string
		failure              string
	}{
		"an older one":              {commit: first, want: first},
		"one that is on no branch":  {commit: lost, refuse: "false", want: lost},
		"one that is not given out": {commit: lost, refuse: "true", failure: "the server does not give it by itself"},
		"one that is not there":     {commit: strings.Repeat("1", 40), refuse: "false", failure: "give a branch or tag"},
	} {
		t.Run(name, func(t *testing.T) {
			// Version 2 gives out any commit, version 0 what it is told to.
			if tc.refuse != "" {
				git(origin, "config", "uploadpack.allowAnySHA1InWant", map[string]string{"true": "false", "false": "true"}[tc.refuse])
			}
			dir := filepath.Join(t.TempDir(), "work tree")
			repo := Repository{URL: "file://" + origin, Commit: tc.commit}
			argv, env := repo.Command(dir, []string{"file"})
			cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...) //nolint:gosec // it is what is tested
			cmd.Env = append(os.Environ(), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=protocol.version", "GIT_CONFIG_VALUE_0=0")
			for k, v := range env {
				cmd.Env = append(cmd.Env, k+"="+v)
			}
			out, err := cmd.CombinedOutput()
			if tc.failure != "" {
				if err == nil || !strings.Contains(string(out), tc.failure) {
					t.Errorf("%v\n%s", err, out)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if got := git(dir, "rev-parse", "HEAD"); got != tc.want {
				t.Errorf("HEAD is %s, want %s", got, tc.want)
			}
		})
	}
}
