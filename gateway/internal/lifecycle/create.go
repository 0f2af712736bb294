package lifecycle

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/agentpod/agentpod/shared/guest"
	"github.com/agentpod/agentpod/shared/sandbox"
	"github.com/agentpod/agentpod/shared/timeline"
)

// plan is a create request that was checked.
type plan struct {
	id, userID string
	directory  string
	repo       *Repository
	config     Config
	rawConfig  json.RawMessage
	idle       sandbox.Idle
	mirrored   bool // somebody left a mirror under this id
}

const maxUserID = 256

func (m *Manager) plan(req sandbox.CreateRequest) (plan, error) {
	p := plan{id: req.ID, userID: req.UserID, rawConfig: req.Config}
	if err := sandbox.CheckID(req.ID); err != nil {
		return p, err
	}
	if req.UserID == "" || len(req.UserID) > maxUserID || strings.ContainsFunc(req.UserID, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return p, sandbox.Errorf(sandbox.CodeInvalidRequest, "userId must be 1 to %d printable characters", maxUserID)
	}
	var err error
	if p.directory, err = checkDirectory(req.Directory); err != nil {
		return p, err
	}
	if p.config, err = m.accept(req.Config); err != nil {
		return p, err
	}
	if p.idle, err = checkIdle(req.Idle); err != nil {
		return p, err
	}
	if p.config.Empty() {
		p.rawConfig = nil
	}
	req.GitURL, req.GitBranch = strings.TrimSpace(req.GitURL), strings.TrimSpace(req.GitBranch)
	if req.GitURL == "" && req.GitBranch != "" {
		return p, sandbox.Errorf(sandbox.CodeInvalidRequest, "gitBranch needs a gitUrl")
	}
	if req.GitURL != "" {
		repo, err := ParseRepository(req.GitURL, req.GitBranch, m.settings.GitProtocols)
		if err != nil {
			return p, err
		}
		p.repo = &repo
	}
	return p, nil
}

// checkDirectory takes a folder at or below the workspace, absolute or relative to it.
func checkDirectory(dir string) (string, error) {
	if dir == "" {
		return guest.Workspace, nil
	}
	if strings.ContainsFunc(dir, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", sandbox.Errorf(sandbox.CodeInvalidRequest, "directory has a control character")
	}
	clean := dir
	if !path.IsAbs(dir) {
		clean = guest.Workspace + "/" + dir
	}
	clean = path.Clean(clean)
	if clean != guest.Workspace && !strings.HasPrefix(clean, guest.Workspace+"/") {
		return "", sandbox.Errorf(sandbox.CodeInvalidRequest, "directory must be %s or a folder below it", guest.Workspace)
	}
	return clean, nil
}

// Create makes a sandbox, or brings up the one that its owner has under this id
// already. It answers when OpenCode is ready and the repository is cloned. The
// work goes on when the caller leaves: the same call again joins it.
func (m *Manager) Create(ctx context.Context, req sandbox.CreateRequest) (sandbox.CreateResponse, error) {
	var resp sandbox.CreateResponse
	p, err := m.plan(req)
	if err != nil {
		return resp, err
	}
	for {
		b := m.findOrAdd(p.id)
		again := false
		var written int
		err := m.serially(ctx, b, false, func(ctx context.Context) error {
			b.mu.Lock()
			gone, st, owner := b.gone, b.state, b.rec.UserID
			b.mu.Unlock()
			var err error
			switch {
			case gone:
				again = true
			case st == stateDeleting:
				again = true
				return m.destroy(m.base, b) //nolint:contextcheck // a delete outlives the sandbox
			case st == stateAbsent:
				written, err = m.create(ctx, b, p)
			case b.unreadable:
				return lostError(p.id, b.lastErrorNow())
			case owner != p.userID:
				return sandbox.Errorf(sandbox.CodeOwnerConflict, "the id %q belongs to another owner; choose another id", p.id)
			default:
				written, err = m.createAgain(ctx, b, p)
			}
			return err
		})
		if err != nil {
			return resp, err // the work may go on: what it writes is not read
		}
		if again {
			continue
		}
		return sandbox.CreateResponse{
			Success: true, SandboxID: p.id, Status: sandbox.StatusRunning,
			OpenCodeURL: "/sandbox/" + p.id + "/opencode", ServerPort: sandbox.OpenCodePort,
			FilesWritten: written, Warnings: p.config.Warnings,
		}, nil
	}
}

// create makes the sandbox from nothing. Whatever fails, nothing stays behind.
func (m *Manager) create(ctx context.Context, b *box, p plan) (written int, err error) {
	began := time.Now()
	if err := m.become(b, stateCreating, false); err != nil {
		m.forget(b)
		return 0, err
	}
	now := time.Now().UTC()
	rec := Record{
		SandboxID: p.id, UserID: p.userID, Incarnation: strings.ToLower(rand.Text()), Phase: PhaseCreating,
		CreatedAt: now, LastActiveAt: now, Directory: p.directory, Volume: newVolume(p.id), Idle: p.idle,
		Secrets: Secrets{Token: secret(), Password: secret(), Config: p.rawConfig},
	}
	if p.repo != nil {
		rec.GitURL, rec.GitBranch = p.repo.URL, p.repo.Ref()
	}
	mem := m.pool.lend(ctx, p)
	if mem != nil {
		rec.Volume, rec.ContainerID = mem.volume(), mem.cont.ID
		rec.Secrets.Token, rec.Secrets.Password = mem.token, mem.password
	}
	b.mu.Lock()
	b.rec, b.lastActive, b.lastRequest = rec, now, now
	b.mu.Unlock()
	defer func() {
		if mem != nil {
			defer m.pool.settle(ctx, mem, err)
		}
		if err == nil {
			return
		}
		if errors.Is(err, ErrRecordExists) {
			// Somebody else's: nothing was made, and nothing of it may be removed.
			_ = m.become(b, stateDeleting, false)
			_ = m.become(b, stateAbsent, false)
			m.forget(b)
			return
		}
		m.log.WarnContext(ctx, "create failed", "sandboxId", p.id, "userId", p.userID, "duration", time.Since(began), "error", err)
		if undo := m.destroy(m.base, b); undo != nil { //nolint:contextcheck // what was made goes, whoever ended the create
			m.log.ErrorContext(ctx, "what a failed create made could not be removed yet", "sandboxId", p.id, "error", undo)
		}
	}()
	if err := m.addRecord(ctx, b, rec); err != nil {
		return 0, atStep(ctx, "record", err)
	}
	if written, err = m.createSomehow(ctx, b, mem, p); err != nil {
		return 0, err
	}
	b.mu.Lock()
	containerID := b.cont.ID
	b.mu.Unlock()
	if err := m.save(ctx, b, func(r *Record) { r.Phase, r.ContainerID = PhaseReady, containerID }); err != nil {
		return 0, atStep(ctx, "record", err)
	}
	if err := context.Cause(ctx); err != nil {
		return 0, err // deleted at the last moment
	}
	if err := m.become(b, stateRunning, false); err != nil {
		return 0, err
	}
	pooled := mem != nil && mem.cont.ID == containerID
	source := fromBoot
	if pooled {
		source = fromPool
		m.figures.claims[claimClaimed].Inc()
	}
	m.figures.created[source].Inc()
	m.log.InfoContext(ctx, "created", "sandboxId", p.id, "userId", p.userID, "duration", time.Since(began), "fromPool", pooled)
	m.notify(rec, sandbox.EventSandboxCreated, map[string]any{"filesWritten": written})
	return written, nil
}

// createSomehow makes the sandbox of a member of the pool, or of a new container
// if there is none, or none that is of use.
func (m *Manager) createSomehow(ctx context.Context, b *box, mem *claimed, p plan) (written int, err error) {
	if mem != nil {
		written, err = m.createFrom(ctx, b, mem, p)
		fault, ok := errors.AsType[memberError](err)
		switch {
		case ctx.Err() != nil:
			return 0, atStepOrNil(ctx, "pool", err)
		case !ok:
			return written, err
		}
		if err := m.replaceMember(ctx, b, mem, fault.error); err != nil {
			return 0, err
		}
	}
	release, err := m.bootSlot(ctx, b)
	if err != nil {
		return 0, atStep(ctx, "queue", err)
	}
	defer release()
	cont, mirrored, err := m.prepare(ctx, b)
	if err != nil {
		return 0, err
	}
	p.mirrored = mirrored
	return m.bring(ctx, b, cont, p, release)
}

// prepare makes the container and the room in the store, and finds out whether a
// mirror is there that the workspace has to begin with.
func (m *Manager) prepare(ctx context.Context, b *box) (cont Container, mirrored bool, err error) {
	rec := b.record()
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		cont, err = m.newContainer(groupCtx, b, rec.Volume, false)
		return atStepOrNil(ctx, "container", err)
	})
	group.Go(func() (err error) {
		mirrored, err = m.makeRoom(groupCtx, rec)
		return atStepOrNil(ctx, "store", err)
	})
	return cont, mirrored, group.Wait()
}

// makeRoom makes the room in the store, and finds out whether a mirror is there.
func (m *Manager) makeRoom(ctx context.Context, rec Record) (mirrored bool, err error) {
	defer timeline.Begin(ctx, "store")()
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Store)
	defer cancel()
	if err := m.workspaces.Begin(ctx, rec.ref()); err != nil {
		return false, err
	}
	return m.workspaces.Mirrored(ctx, rec.SandboxID)
}

func secret() string { return rand.Text() + rand.Text() }

func tokenHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

func (m *Manager) addRecord(ctx context.Context, b *box, rec Record) error {
	defer timeline.Begin(ctx, "record")()
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Store)
	defer cancel()
	version, err := m.store.Create(ctx, rec)
	if errors.Is(err, ErrRecordExists) {
		return sandbox.Errorf(sandbox.CodeConflict, "the store has a record of the sandbox %q that this gateway did not know; restart the gateway, and have no other use the same store", rec.SandboxID).WithCause(err)
	}
	if err != nil {
		return storeError(err)
	}
	b.mu.Lock()
	b.version = version
	b.mu.Unlock()
	return nil
}

// bring starts a new container and makes it what was asked for: OpenCode boots
// while the repository is cloned, unless that needs a secret, which code of the
// repository or of the config could read. The boot slot is given back as soon as
// OpenCode is ready: a clone may take minutes.
func (m *Manager) bring(ctx context.Context, b *box, cont Container, p plan, release func()) (written int, err error) {
	g, err := m.open(ctx, b, cont)
	if err != nil {
		return 0, err
	}
	if p.mirrored {
		if err := m.importMirror(ctx, b, g); err != nil {
			return 0, err
		}
		p.repo = nil // the workspace is not empty
	}
	elsewhere := p.directory != guest.Workspace
	// The folder may be one of the repository's: it is OpenCode's working
	// directory, so it must be there first.
	ahead := p.repo != nil && (elsewhere || p.repo.Credentials())
	if ahead {
		release()
		if err := m.clone(ctx, b, g, *p.repo); err != nil {
			return 0, atStep(ctx, "clone", err)
		}
		if release, err = m.bootSlot(ctx, b); err != nil {
			return 0, atStep(ctx, "queue", err)
		}
		defer release()
	}
	if elsewhere {
		if err := m.makeDirectory(ctx, g, p.directory); err != nil {
			return 0, atStep(ctx, "directory", err)
		}
	}
	var applied guest.Applied
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		defer release()
		applied, err = m.startOpenCode(groupCtx, b, g, p.config, false)
		return atStepOrNil(ctx, "opencode", err)
	})
	if p.repo != nil && !ahead {
		group.Go(func() error { return atStepOrNil(ctx, "clone", m.clone(groupCtx, b, g, *p.repo)) })
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	m.serves(b)
	return p.config.CountWritten(applied.Written), nil
}

// serves notes that a new sandbox is what was asked for.
func (m *Manager) serves(b *box) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attached = true
	b.soilLocked()
}

// importMirror begins a workspace with the files of a mirror.
func (m *Manager) importMirror(ctx context.Context, b *box, g *guest.Client) error {
	ctx, cancel := context.WithTimeout(ctx, m.settings.Deadlines.Restore)
	defer cancel()
	defer b.during(ctx, sandbox.StepRestore)()
	files, err := m.workspaces.Import(ctx, b.record().ref(), g)
	if err != nil {
		return atStep(ctx, "mirror", err)
	}
	m.log.InfoContext(ctx, "restored from a mirror", "sandboxId", b.id, "files", files)
	return nil
}

func atStepOrNil(ctx context.Context, step string, err error) error {
	if err == nil {
		return nil
	}
	return atStep(ctx, step, err)
}

// createAgain is a create of a sandbox that its owner has already: it is brought
// up with the config, and an empty workspace is filled.
func (m *Manager) createAgain(ctx context.Context, b *box, p plan) (written int, err error) {
	done, err := m.up(ctx, b, wish{config: given(p.config, p.rawConfig)})
	written = done.written
	if err != nil || p.repo == nil {
		return written, err
	}
	b.mu.Lock()
	b.requestedLocked(Working)
	g := b.guest
	b.mu.Unlock()
	empty, err := workspaceEmpty(ctx, g)
	if err != nil || !empty {
		return written, err
	}
	if p.repo.Credentials() {
		// Whatever has run in it so far could read them, or be the git that is run.
		return 0, sandbox.Errorf(sandbox.CodeConflict,
			"the sandbox %q has run before, so code in it could read the credentials in gitUrl; create a new sandbox with this gitUrl, or give a gitUrl without credentials", p.id)
	}
	if err := m.clone(ctx, b, g, *p.repo); err != nil {
		// Half a clone would pass for a workspace that is in use the next time.
		m.emptyWorkspace(ctx, b, g)
		return 0, atStep(ctx, "clone", err)
	}
	return written, m.save(ctx, b, func(r *Record) { r.GitURL, r.GitBranch = p.repo.URL, p.repo.Ref() })
}
