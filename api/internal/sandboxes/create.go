package sandboxes

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/api/internal/task"
	"github.com/agentpod/agentpod/shared/redact"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// The bounds of what a user says of a sandbox, in characters.
const (
	maxName        = 100
	maxDescription = 2000
	maxSlug        = 60
)

// NewSandbox is what a user says of a sandbox that is to be made.
type NewSandbox struct {
	Name, Description    string
	GithubURL, GitBranch string
	// Provider is the one asked for, or empty.
	Provider string
	// Later leaves it unmade until it is started.
	Later bool
}

// Create keeps a record and returns it; the sandbox is made in the background.
// The credentials of a git URL are used for the first clone and kept nowhere.
func (s *Service) Create(ctx context.Context, userID string, n NewSandbox) (task.Sandbox, error) {
	row, err := s.check(n)
	if err != nil {
		return row, err
	}
	if row.Provider, _, err = s.deps.Backends.Select(ctx, n.Provider, provider.Development); err != nil {
		return row, err //nolint:wrapcheck // an error for the caller
	}
	row.UserID = userID
	if row, err = s.keep(ctx, row); err != nil {
		return row, err
	}
	if n.Later {
		return row, nil
	}
	if !s.begin(ctx, row, n.GithubURL) {
		err := sandbox.Errorf(sandbox.CodeShuttingDown, "the API is shutting down; try again")
		return row, errors.Join(err, s.deps.Sandboxes.Delete(ctx, userID, row.ID))
	}
	return row, nil
}

// check makes a record of what a user says.
func (s *Service) check(n NewSandbox) (task.Sandbox, error) {
	var none task.Sandbox
	n.Name = strings.TrimSpace(n.Name)
	switch {
	case n.Name == "" || utf8.RuneCountInString(n.Name) > maxName || !plain(n.Name, ""):
		return none, sandbox.Errorf(sandbox.CodeInvalidRequest, "name must be 1 to %d characters of plain text", maxName)
	case utf8.RuneCountInString(n.Description) > maxDescription || !plain(n.Description, "\n\r\t"):
		return none, sandbox.Errorf(sandbox.CodeInvalidRequest, "description must be at most %d characters of plain text", maxDescription)
	case n.GithubURL == "" && n.GitBranch != "":
		return none, sandbox.Errorf(sandbox.CodeInvalidRequest, "gitBranch needs a githubUrl")
	}
	now := s.now()
	row := task.Sandbox{
		Name: n.Name, Description: n.Description,
		Status: task.SandboxStarting, CreatedAt: now, UpdatedAt: now,
	}
	if n.Later {
		row.Status = task.SandboxCreated
	}
	if n.GithubURL == "" {
		return row, nil
	}
	repo, err := sandbox.ParseRepository(n.GithubURL, n.GitBranch, sandbox.DefaultGitProtocols())
	if err != nil {
		return none, err
	}
	if n.Later && repo.Username+repo.Password != "" {
		return none, sandbox.Errorf(sandbox.CodeInvalidGitURL,
			"the githubUrl has credentials, which are not kept: leave autoStart out, or them")
	}
	row.GithubURL, row.GitBranch, row.RepoName = repo.URL, repo.Ref(), repo.Name()
	return row, nil
}

// plain tells whether a text may stand in a database, a log and a page.
func plain(s, also string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) && !strings.ContainsRune(also, r)
	})
}

var notSlug = regexp.MustCompile(`[^a-z0-9]+`)

func slugOf(name string) string {
	slug := notSlug.ReplaceAllString(strings.ToLower(name), "-")
	slug = strings.Trim(slug[:min(len(slug), maxSlug)], "-")
	if slug == "" {
		return "sandbox"
	}
	return slug
}

// slugTries is how many slugs are tried; after the first they are random.
const slugTries = 3

// keep gives a record its id and a slug that the user has not used, and keeps it.
func (s *Service) keep(ctx context.Context, row task.Sandbox) (task.Sandbox, error) {
	row.ID, row.Slug = task.NewID(task.PrefixSandbox), slugOf(row.Name)
	for try, slug := 1, row.Slug; ; try++ {
		err := s.deps.Sandboxes.Create(ctx, row)
		switch {
		case err == nil:
			return s.row(ctx, row.UserID, row.ID)
		case errors.Is(err, task.ErrNotFound):
			return row, sandbox.Errorf(sandbox.CodeUserNotFound, "there is no such user")
		case errors.Is(err, task.ErrExists) && try < slugTries:
			row.Slug = slug + "-" + strings.ToLower(rand.Text()[:8])
		default:
			return row, err //nolint:wrapcheck // the store says what it was doing
		}
	}
}

// begin makes a sandbox in the background, if nobody does so already. It returns
// false after Close.
func (s *Service) begin(asked context.Context, row task.Sandbox, gitURL string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.making[row.ID] != nil {
		return true
	}
	ctx, cancel := context.WithTimeout(timeline.Branch(s.ctx, asked, "userId", row.UserID, "provider", row.Provider, "sandboxId", row.ID), s.settings.CreateTimeout)
	timeline.Note(asked, "sandboxId", row.ID)
	m := &making{cancel: cancel, done: make(chan struct{})}
	s.making[row.ID] = m
	s.wg.Go(func() {
		defer close(m.done)
		defer cancel()
		err := s.patiently(ctx, row, gitURL)
		s.settle(row, m, err) //nolint:contextcheck // the making's own context may be over
	})
	return true
}

// patiently makes a sandbox, trying again what can pass. A worker cannot clone
// twice, and how far a create came is not known.
func (s *Service) patiently(ctx context.Context, row task.Sandbox, gitURL string) error {
	patience := provider.Patience
	if row.Provider == provider.Cloudflare && gitURL != "" {
		patience = 0
	}
	return provider.Patiently(ctx, patience, func() error {
		_, _, err := s.Raise(ctx, row, gitURL)
		return err
	}, nil)
}

// settle says in the record why a sandbox could not be made.
func (s *Service) settle(row task.Sandbox, m *making, err error) {
	s.mu.Lock()
	delete(s.making, row.ID)
	dropped := m.dropped
	s.mu.Unlock()
	if err == nil || dropped || s.ctx.Err() != nil {
		return
	}
	s.deps.Log.Warn("a sandbox could not be made", "sandboxId", row.ID, "provider", row.Provider, "error", err)
	ctx, cancel := settling(context.Background())
	defer cancel()
	_, err = s.change(ctx, row, task.SandboxChange{Status: ptr(task.SandboxError), ErrorMessage: ptr(sentence(err))})
	if err != nil {
		s.deps.Log.Error("the end of making a sandbox was not kept", "sandboxId", row.ID, "error", err)
	}
}

// busyMaking tells whether a sandbox is being made by this process.
func (s *Service) busyMaking(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.making[id] != nil
}

// drop ends the making of a sandbox and returns when it has ended.
func (s *Service) drop(ctx context.Context, id string) error {
	s.mu.Lock()
	m := s.making[id]
	if m != nil {
		m.dropped = true
	}
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	m.cancel()
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return sandbox.Errorf(sandbox.CodeDeadline, "the sandbox is still being made; try again").WithCause(ctx.Err())
	}
}

// Raise brings a sandbox up: it makes one that has never run, cloning gitURL, and
// wakes any other. The user's config goes along if it has changed. It returns the
// record as it is then and where the sandbox is, and may take minutes. A record
// that is deleted meanwhile is sandbox_not_found.
func (s *Service) Raise(ctx context.Context, row task.Sandbox, gitURL string) (task.Sandbox, sandbox.Backend, error) {
	backend, err := s.deps.Backends.Backend(row.Provider)
	if err != nil {
		return row, nil, err //nolint:wrapcheck // an error for the caller
	}
	var config json.RawMessage
	var hash string
	if s.deps.Config != nil {
		if config, hash, err = s.deps.Config(ctx, row.UserID); err != nil {
			return row, nil, err
		}
	}
	if row.StartedAt == nil {
		branch := row.GitBranch
		if gitURL == "" {
			branch = ""
		}
		_, err = backend.Create(ctx, sandbox.CreateRequest{
			ID: row.ID, UserID: row.UserID, Config: config, GitURL: gitURL, GitBranch: branch,
		})
	} else {
		var req sandbox.WakeRequest
		if hash != row.ConfigHash {
			req.Config = config
			if config == nil {
				req.Config = emptied()
			}
		}
		_, err = backend.Wake(ctx, row.ID, req)
	}
	if err != nil {
		return row, nil, discreet(provider.Told(err), config, gitURL)
	}
	now := s.now()
	c := task.SandboxChange{
		Status: ptr(task.SandboxRunning), ErrorMessage: ptr(""), ConfigHash: &hash, StartedAt: &now, LastActiveAt: &now,
	}
	if row.Provider == provider.Docker {
		c.Tier = ptr(string(sandbox.TierRunning))
	}
	id := row.ID
	row, err = s.change(ctx, row, c)
	if sandbox.HasCode(err, sandbox.CodeSandboxNotFound) { // deleted while it was made
		ctx, cancel := settling(ctx)
		defer cancel()
		err = errors.Join(err, backend.Delete(ctx, id))
	}
	return row, backend, err
}

// discreet takes out of an error what a backend was given and none may repeat,
// neither to a caller nor into the database: a git server may have repeated it.
func discreet(err error, config json.RawMessage, gitURL string) error {
	e, ok := errors.AsType[*sandbox.Error](err)
	if !ok {
		return err
	}
	repo, _ := sandbox.ParseRepository(gitURL, "", sandbox.DefaultGitProtocols()) // it was checked; "" has no secrets
	return e.Redacted(append(redact.Secrets(config), repo.Secrets()...)...)
}

// emptied is the config of a user who has removed the last of it: without one a
// sandbox would keep what it has, keys too.
func emptied() json.RawMessage { return json.RawMessage(`{"agents_md":""}`) }
