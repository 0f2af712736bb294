package frontpage

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/agentpod/agentpod/shared/sandbox"
)

// createForm is the form of a new sandbox as it was sent, and what is wrong with it.
type createForm struct {
	ID, GitURL, GitBranch, Problem string
}

// create begins to make a sandbox. What is wrong with the form is said at once, what
// goes wrong later where the sandbox would be.
func (p *Page) create(w http.ResponseWriter, r *http.Request, _ *session) error {
	values, err := form(w, r)
	if err != nil {
		return err
	}
	f := createForm{
		ID: strings.TrimSpace(values.Get("id")), GitURL: strings.TrimSpace(values.Get("gitUrl")), GitBranch: strings.TrimSpace(values.Get("gitBranch")),
	}
	if err := p.beginCreate(r.Context(), f); err != nil {
		if byScript(r) {
			return err
		}
		f.Problem = public(err).Message
		p.render(w, http.StatusUnprocessableEntity, "home", p.view("", f))
		return nil
	}
	return p.settled(w, r)
}

func (p *Page) beginCreate(ctx context.Context, f createForm) error {
	if f.ID == "" {
		f.ID = newID(f.GitURL)
	}
	if err := sandbox.CheckID(f.ID); err != nil {
		return err //nolint:wrapcheck // it is for the caller
	}
	if _, err := p.Sandboxes.Whose(f.ID); err == nil {
		return sandbox.Errorf(sandbox.CodeConflict, "there is a sandbox %q already; choose another name", f.ID)
	}
	one, err := p.jobs.start(f.ID, "create", func(ctx context.Context) (string, error) { //nolint:contextcheck // it outlives the request
		_, err := p.Sandboxes.Create(ctx, sandbox.CreateRequest{ID: f.ID, UserID: Owner, GitURL: f.GitURL, GitBranch: f.GitBranch})
		return "Ready.", err
	})
	if err != nil {
		return err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-one.done:
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return nil
	}
	err = p.jobs.outcome(one)
	if err != nil {
		p.jobs.forget(f.ID)
	}
	return err
}

var notInID = regexp.MustCompile(`[^a-z0-9-]+`)

// newID makes an id that says what is in a sandbox.
func newID(gitURL string) string {
	name := "sandbox"
	if u, err := url.Parse(gitURL); err == nil && u.Path != "" {
		base := strings.TrimSuffix(path.Base(u.Path), ".git")
		if clean := strings.Trim(notInID.ReplaceAllString(strings.ToLower(base), "-"), "-"); clean != "" {
			const most = 40
			name = strings.Trim(clean[:min(len(clean), most)], "-")
		}
	}
	return name + "-" + strings.ToLower(rand.Text()[:5])
}

// act does something with a sandbox, or begins to.
func (p *Page) act(w http.ResponseWriter, r *http.Request, s *session) error {
	values, err := form(w, r)
	if err != nil {
		return err
	}
	id, verb := r.PathValue("id"), r.PathValue("verb")
	if err := sandbox.CheckID(id); err != nil {
		return err //nolint:wrapcheck // it is for the caller
	}
	var do func(ctx context.Context) (string, error)
	switch verb {
	case "open":
		return p.open(w, s, id)
	case "dismiss":
		p.jobs.forget(id)
		return p.settled(w, r)
	case "wake":
		do = func(ctx context.Context) (string, error) {
			_, err := p.Sandboxes.Wake(ctx, id, nil, "")
			return "Awake.", err
		}
	case "sync":
		do = func(ctx context.Context) (string, error) {
			done, err := p.Sandboxes.Sync(ctx, id)
			return fmt.Sprintf("Synced: %s, %s.", filesText(done.Files), bytesText(done.Bytes)), err
		}
	case "hibernate":
		tier := sandbox.Tier(values.Get("tier"))
		do = func(ctx context.Context) (string, error) {
			_, err := p.Sandboxes.Hibernate(ctx, id, tier, false)
			return "Put to sleep.", err
		}
	case "delete":
		do = func(ctx context.Context) (string, error) { return "", p.Sandboxes.Delete(ctx, id) }
	default:
		return sandbox.Errorf(sandbox.CodeRouteNotFound, "there is no such action")
	}
	// There would be no card to say it on.
	if _, err := p.Sandboxes.Whose(id); err != nil {
		return err //nolint:wrapcheck // it is for the caller
	}
	if _, err := p.jobs.start(id, verb, do); err != nil {
		return err
	}
	return p.settled(w, r)
}

// open sends a visitor on to a sandbox's UI.
func (p *Page) open(w http.ResponseWriter, s *session, id string) error {
	if p.UI == nil {
		return sandbox.Errorf(sandbox.CodeUnsupported, "this gateway serves no web UI: SANDBOX_DOMAIN is off")
	}
	// Noted first, so that no sign-out can miss it.
	if !p.sessions.opens(s, id) {
		return sandbox.Errorf(sandbox.CodeUnauthorized, "you are signed out; load the page again and sign in")
	}
	link, _, err := p.UI.Ticket(id, s.name)
	if err != nil {
		return err //nolint:wrapcheck // it is for the caller
	}
	w.Header().Set("Location", link)
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// settled ends the request of a form: the page shows the rest.
func (p *Page) settled(w http.ResponseWriter, r *http.Request) error {
	if byScript(r) {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}
