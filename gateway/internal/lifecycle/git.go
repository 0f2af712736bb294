package lifecycle

import (
	"strings"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// Repository is what is cloned into a workspace.
type Repository sandbox.Repository

// DefaultGitProtocols are the protocols that a clone may use.
func DefaultGitProtocols() []string { return sandbox.DefaultGitProtocols() }

// ParseRepository is sandbox.ParseRepository.
func ParseRepository(raw, branch string, protocols []string) (Repository, error) {
	r, err := sandbox.ParseRepository(raw, branch, protocols)
	return Repository(r), err
}

// Command is the clone of the repository into the (empty) folder dir, and the
// environment it needs: no prompts, only the protocols allowed, no config but the
// clone's own, credentials through a helper that answers for the URL's own origin
// and is kept nowhere.
func (r Repository) Command(dir string, protocols []string) (argv []string, env map[string]string) {
	argv = []string{"git", "clone", "--progress", "--origin", "origin"}
	if r.Branch != "" {
		argv = append(argv, "--branch", r.Branch)
	}
	if r.Commit != "" {
		argv = append(argv, "--no-checkout")
	}
	argv = append(argv, "--", r.URL, dir)
	if r.Commit != "" {
		argv = append([]string{"sh", "-c", atCommit, "sh", dir, r.Commit}, argv...)
	}
	env = map[string]string{
		"GIT_TERMINAL_PROMPT": "0",
		"GIT_ASKPASS":         "/bin/true",
		"GIT_ALLOW_PROTOCOL":  strings.Join(protocols, ":"),
		// An unknown host key is accepted on first use: nobody is there to ask.
		"GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o ConnectTimeout=20",
		// A server that sends less than 1 kB/s for 30 s is given up.
		"GIT_HTTP_LOW_SPEED_LIMIT": "1000",
		"GIT_HTTP_LOW_SPEED_TIME":  "30",
		"LC_ALL":                   "C.UTF-8",
		// What the home or the image sets up for git, such as hooks and filters, has
		// no part in this.
		"GIT_CONFIG_GLOBAL":   "/dev/null",
		"GIT_CONFIG_NOSYSTEM": "1",
	}
	if r.Credentials() {
		env["GIT_CONFIG_COUNT"] = "1"
		env["GIT_CONFIG_KEY_0"] = "credential." + r.Origin + ".helper"
		env["GIT_CONFIG_VALUE_0"] = `!f() { test "$1" = get && printf 'username=%s\npassword=%s\n' "$AGENTPOD_GIT_USERNAME" "$AGENTPOD_GIT_PASSWORD"; }; f`
		env["AGENTPOD_GIT_USERNAME"] = r.Username
		env["AGENTPOD_GIT_PASSWORD"] = r.Password
	}
	return argv, env
}

// Credentials says whether the clone needs a secret. It lies in the environment of
// git, where every process of the sandbox can read it.
func (r Repository) Credentials() bool { return r.Username != "" || r.Password != "" }

// atCommit is a shell script that clones with the command in its arguments from the
// third, into the folder that is its first, and checks out the commit that is its
// second: a clone takes branches and tags alone. A commit that is on none of them is
// asked for by itself, which a server may refuse.
const atCommit = `dir=$1 commit=$2
shift 2
"$@" && cd -- "$dir" || exit
if ! git cat-file -e "$commit^{commit}" 2>/dev/null && ! git fetch --progress origin "$commit"; then
	echo "The commit $commit is on no branch and no tag of the repository, and the server does not give it by itself: give a branch or tag." >&2
	exit 1
fi
git checkout --detach "$commit"`

// Redact is sandbox.Repository's.
func (r Repository) Redact(s string) string { return sandbox.Repository(r).Redact(s) }

// Ref is sandbox.Repository's.
func (r Repository) Ref() string { return sandbox.Repository(r).Ref() }
