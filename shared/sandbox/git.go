package sandbox

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/net/idna"

	"github.com/agentpod/agentpod/shared/redact"
)

// Repository is a git URL that was checked, with its credentials apart.
type Repository struct {
	URL string // without credentials: fit for records, logs and .git/config
	// Branch is the branch or tag to check out, or "" for the server's own.
	Branch string
	// Commit is the commit to check out instead of a branch, as its full name in
	// lower-case hexadecimal digits, or "".
	Commit   string
	Username string
	Password string
	// Origin is scheme://host[:port]: the only place the credentials go to.
	Origin string
}

// DefaultGitProtocols are the protocols that a clone may use.
func DefaultGitProtocols() []string { return []string{"https", "ssh", "git"} }

var (
	scpLike = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9_.-]*@)([A-Za-z0-9][A-Za-z0-9.-]*)(:[^\s\\:-][^\s\\]*)$`)
	gitUser = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	gitHost = regexp.MustCompile(`^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)(:[0-9]{1,5})?$`)
)

const maxGitURL = 2048

// ParseRepository checks a git URL and branch before anything is run with them:
// only the protocols allowed, nothing that git could take for an option, a
// transport helper (ext::) or a file. White space around either, as a paste has it,
// is ignored. A branch of 40 or 64 hexadecimal digits is a commit. An international
// host name becomes what the name system knows (xn--…). Errors never repeat the URL,
// which may hold a password.
func ParseRepository(raw, branch string, protocols []string) (Repository, error) {
	var none Repository
	allowed := strings.Join(protocols, ", ")
	refuse := func(why string) (Repository, error) {
		return none, Errorf(CodeInvalidGitURL, "gitUrl %s; give a URL with one of these protocols: %s", why, allowed)
	}
	raw, branch = strings.TrimSpace(raw), strings.TrimSpace(branch)
	if fault := branchFault(branch); fault != "" {
		return none, Errorf(CodeInvalidGitURL, "gitBranch %s, which git allows in no name of a branch or tag", fault)
	}
	repo := Repository{Branch: branch}
	if commitID.MatchString(branch) {
		repo.Branch, repo.Commit = "", strings.ToLower(branch)
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
		user, rest, _ := strings.Cut(raw, "@")
		host, path, _ := strings.Cut(rest, ":")
		repo.URL = user + "@" + asciiHost(host) + ":" + path
		if scpLike.MatchString(repo.URL) && slices.Contains(protocols, "ssh") {
			return repo, nil
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
	u.Host = asciiHost(u.Host)
	if !gitHost.MatchString(u.Host) {
		return refuse("has no proper host")
	}
	if u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return refuse("has a query or fragment")
	}
	if strings.Trim(u.Path, "/") == "" {
		return refuse("names no repository")
	}
	repo.Origin = scheme + "://" + u.Host
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

// Ref is what is checked out: a branch, a tag, a commit, or "".
func (r Repository) Ref() string { return r.Branch + r.Commit }

// asciiHost is a host, maybe with a port, whose international name is written as the
// name system knows it. One that cannot be stays as it is.
func asciiHost(host string) string {
	if !strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII }) {
		return host
	}
	name, port, colon := strings.Cut(host, ":")
	ascii, err := idna.Lookup.ToASCII(name)
	if err != nil {
		return host
	}
	if colon {
		ascii += ":" + port
	}
	return ascii
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
