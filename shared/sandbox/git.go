package sandbox

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/agentpod/agentpod/shared/redact"
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
	gitBranch = regexp.MustCompile(`^[\pL\pN_][\pL\pN._/@+#=-]*$`)
)

const (
	maxGitURL = 2048
	maxBranch = 255 // characters; as a bound in the pattern it would cost megabytes
)

// ParseRepository checks a git URL and branch before anything is run with them:
// only the protocols allowed, nothing that git could take for an option, a
// transport helper (ext::) or a file. Errors never repeat the URL, which may
// hold a password.
func ParseRepository(raw, branch string, protocols []string) (Repository, error) {
	var none Repository
	allowed := strings.Join(protocols, ", ")
	refuse := func(why string) (Repository, error) {
		return none, Errorf(CodeInvalidGitURL, "gitUrl %s; give a URL with one of these protocols: %s", why, allowed)
	}
	if branch != "" && (utf8.RuneCountInString(branch) > maxBranch || !gitBranch.MatchString(branch) || strings.Contains(branch, "..") ||
		strings.Contains(branch, "@{") || strings.HasSuffix(branch, ".lock") || strings.HasSuffix(branch, "/")) {
		return none, Errorf(CodeInvalidGitURL, "gitBranch is not a name that git allows for a branch or tag")
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

// Secrets are the credentials as they are sent.
func (r Repository) Secrets() []string {
	switch {
	case r.Password != "":
		secrets := []string{r.Password, r.Username + ":" + r.Password}
		if redact.Ordinary(r.Password) { // as in TOKEN:x-oauth-basic
			secrets = append(secrets, r.Username)
		}
		return secrets
	case r.Username != "": // a token given so is as secret as a password
		return []string{r.Username, r.Username + ":"}
	}
	return nil
}

// Redact takes the credentials out of what git said, and the server through it.
func (r Repository) Redact(s string) string { return redact.Text(s, r.Secrets()...) }

// Name is the last element of the repository's path, without ".git".
func (r Repository) Name() string {
	address := r.URL
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		address = u.Path
	} else if _, after, scp := strings.Cut(address, ":"); scp {
		address = after
	}
	address = strings.TrimRight(address, "/")
	return strings.TrimSuffix(address[strings.LastIndexByte(address, '/')+1:], ".git")
}
