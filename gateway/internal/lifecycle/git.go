package lifecycle

import (
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// Repository is a git URL that was checked, with its credentials apart.
type Repository struct {
	URL      string // without credentials: fit for records, logs and .git/config
	Branch   string
	Username string
	Password string
	// Origin is scheme://host[:port]: the only place the credentials go to.
	Origin string
}

// DefaultGitProtocols are the protocols that a clone may use.
func DefaultGitProtocols() []string { return []string{"https", "ssh", "git"} }

var (
	scpLike   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[A-Za-z0-9_~/.][^\s\\]*$`)
	gitUser   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	gitHost   = regexp.MustCompile(`^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)(:[0-9]{1,5})?$`)
	gitBranch = regexp.MustCompile(`^[\pL\pN_][\pL\pN._/@+#=-]{0,254}$`)
)

const maxGitURL = 2048

// ParseRepository checks a git URL and branch before anything is run with them:
// only the protocols allowed, nothing that git could take for an option, a
// transport helper (ext::) or a file. Errors never repeat the URL, which may
// hold a password.
func ParseRepository(raw, branch string, protocols []string) (Repository, error) {
	var none Repository
	allowed := strings.Join(protocols, ", ")
	refuse := func(why string) (Repository, error) {
		return none, sandbox.Errorf(sandbox.CodeInvalidGitURL, "gitUrl %s; give a URL with one of these protocols: %s", why, allowed)
	}
	if branch != "" && (!gitBranch.MatchString(branch) || strings.Contains(branch, "..") ||
		strings.Contains(branch, "@{") || strings.HasSuffix(branch, ".lock") || strings.HasSuffix(branch, "/")) {
		return none, sandbox.Errorf(sandbox.CodeInvalidGitURL, "gitBranch is not a name that git allows for a branch or tag")
	}
	if len(raw) > maxGitURL {
		return refuse("is too long")
	}
	if strings.HasPrefix(raw, "-") {
		return refuse("begins with '-'")
	}
	if strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }) {
		return refuse("has white space, a backslash or a control character")
	}
	if strings.Contains(raw, "::") && !strings.Contains(raw, "[") {
		return refuse("names a transport helper")
	}
	if !strings.Contains(raw, "://") {
		if scpLike.MatchString(raw) && slices.Contains(protocols, "ssh") {
			return Repository{URL: raw, Branch: branch}, nil
		}
		return refuse("is not a URL")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return refuse("cannot be read")
	}
	scheme := strings.ToLower(u.Scheme)
	if !slices.Contains(protocols, scheme) {
		return refuse("has a protocol that is not allowed")
	}
	if !gitHost.MatchString(u.Host) {
		return refuse("has no proper host")
	}
	if u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return refuse("has a query or fragment")
	}
	if strings.Trim(u.Path, "/") == "" {
		return refuse("names no repository")
	}
	repo := Repository{Branch: branch, Origin: scheme + "://" + u.Host}
	switch scheme {
	case "ssh":
		if user := u.User.Username(); user != "" {
			if !gitUser.MatchString(user) {
				return refuse("has a user name that is not allowed")
			}
			u.User = url.User(user)
		}
	default:
		if u.User != nil {
			repo.Username = u.User.Username()
			repo.Password, _ = u.User.Password()
			if strings.ContainsAny(repo.Username+repo.Password, "\r\n\x00") {
				return refuse("has a line break in its credentials")
			}
		}
		u.User = nil
	}
	u.Scheme = scheme
	repo.URL = u.String()
	return repo, nil
}

// Command is the clone of the repository into the (empty) folder dir, and the
// environment it needs: no prompts, only the protocols allowed, credentials
// through a helper that answers for the URL's own origin and is kept nowhere.
func (r Repository) Command(dir string, protocols []string) (argv []string, env map[string]string) {
	argv = []string{"git", "clone", "--origin", "origin"}
	if r.Branch != "" {
		argv = append(argv, "--branch", r.Branch)
	}
	argv = append(argv, "--", r.URL, dir)
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
	}
	if r.Username != "" || r.Password != "" {
		env["GIT_CONFIG_COUNT"] = "1"
		env["GIT_CONFIG_KEY_0"] = "credential." + r.Origin + ".helper"
		env["GIT_CONFIG_VALUE_0"] = `!f() { test "$1" = get && printf 'username=%s\npassword=%s\n' "$AGENTPOD_GIT_USERNAME" "$AGENTPOD_GIT_PASSWORD"; }; f`
		env["AGENTPOD_GIT_USERNAME"] = r.Username
		env["AGENTPOD_GIT_PASSWORD"] = r.Password
	}
	return argv, env
}

// Redact takes the credentials out of what git said.
func (r Repository) Redact(s string) string {
	for _, secret := range []string{r.Password, url.QueryEscape(r.Password), url.PathEscape(r.Password)} {
		if secret != "" {
			s = strings.ReplaceAll(s, secret, "***")
		}
	}
	// A token given as the user name alone is as secret as a password.
	if r.Password == "" && r.Username != "" {
		s = strings.ReplaceAll(s, r.Username, "***")
	}
	return s
}
