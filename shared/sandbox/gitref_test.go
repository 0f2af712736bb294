package sandbox_test

import (
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// TestBranchesAreWhatGitAllows compares with git itself, for names that people use
// and for names made of what the rules are about.
func TestBranchesAreWhatGitAllows(t *testing.T) {
	t.Parallel()
	names := []string{
		"main", "@scope/pkg@1.0.0", "feat(x)-y", "fix!", "a,b", "#1", "größe", "日本語", "v1.0", "a@b", "@", "HEAD", "a=b;c&d|e<f>\"g'", "$(id)", "`id`", "%2e", "{x}", "a]b",
	}
	parts := []string{
		"a", "b", "é", "/", "/", ".", ".", "..", "@", "{", "@{", "-", ".lock", "lock", "~", "^", ":", "?", "*", "[", `\`, " ", "\t", "\x01", "\x7f", "!", "#", "(", ",",
	}
	random := rand.New(rand.NewPCG(15, 14))
	for range 500 {
		var name strings.Builder
		for range 1 + random.IntN(5) {
			name.WriteString(parts[random.IntN(len(parts))])
		}
		names = append(names, name.String())
	}
	allowed := 0
	for _, name := range names {
		if name != strings.TrimSpace(name) {
			continue
		}
		err := exec.CommandContext(t.Context(), "git", "check-ref-format", "refs/heads/"+name).Run() //nolint:gosec // it is what is tested
		want := err == nil && name[0] != '-'
		repo, err := sandbox.ParseRepository("https://example.test/a", name, sandbox.DefaultGitProtocols())
		if (err == nil) != want {
			t.Errorf("%q: %v; that git allows it is %t", name, err, want)
		}
		if err == nil && repo.Branch != name {
			t.Errorf("%q becomes %q", name, repo.Branch)
		}
		if want {
			allowed++
		}
	}
	if allowed < 50 || allowed > len(names)-50 {
		t.Errorf("%d of %d names are allowed", allowed, len(names))
	}
}

func TestACommitIsNoBranch(t *testing.T) {
	t.Parallel()
	const sha = "1a5c961f1a5c961f1a5c961f1a5c961f1a5c961f"
	for branch, want := range map[string]string{
		sha: sha, " " + strings.ToUpper(sha) + "\n": sha, sha + sha[:24]: sha + sha[:24], sha[:39]: "", sha + "a": "", "g" + sha[1:]: "",
	} {
		repo, err := sandbox.ParseRepository("https://example.test/a", branch, sandbox.DefaultGitProtocols())
		if err != nil || repo.Commit != want || (repo.Branch == "") != (want != "") {
			t.Errorf("%q: commit %q, branch %q, %v", branch, repo.Commit, repo.Branch, err)
		}
	}
}
