package httpapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/agentpod/agentpod/api/internal/account"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// credentialKey tells credentials apart without holding them.
type credentialKey [sha256.Size]byte

func keyOf(token string) credentialKey { return sha256.Sum256([]byte(token)) }

// streams are the open requests that outlive the moment in which they were
// admitted. The zero value is ready to use.
type streams struct {
	mu       sync.Mutex
	open     map[*stream]struct{}
	outs     uint64 // sign-outs so far
	draining bool
}

// held says what an open request hangs on besides its caller's credential.
type held struct {
	// about is the sandbox whose deletion ends it, or empty.
	about string
	// bounded says that it ends by itself, so that a drain waits for it.
	bounded bool
	// check returns nil while the caller has a right to it, an error such as
	// sandbox_not_found when that is lost, and any other error when it cannot tell.
	check func(ctx context.Context) error
}

type stream struct {
	held
	key    credentialKey
	cancel context.CancelCauseFunc
}

// Why a stream ends; what has not begun to answer says so.
func errSignedOut() error {
	return sandbox.Errorf(sandbox.CodeUnauthorized, "the session has ended; sign in again")
}

func errDraining() error {
	return sandbox.Errorf(sandbox.CodeShuttingDown, "the API is shutting down; try again")
}

func (s *streams) signOuts() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outs
}

// add tells whether there was a sign-out since the caller was admitted.
func (s *streams) add(x *stream, since uint64) (suspect bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining && !x.bounded {
		x.cancel(errDraining())
	}
	if s.open == nil {
		s.open = map[*stream]struct{}{}
	}
	s.open[x] = struct{}{}
	return s.outs != since
}

func (s *streams) remove(x *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, x)
}

// end ends those that match. The caller holds mu.
func (s *streams) end(why error, match func(*stream) bool) {
	for x := range s.open {
		if match(x) {
			x.cancel(why)
		}
	}
}

// signOut ends what a credential opened, after it has ceased to be good.
func (s *streams) signOut(key credentialKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outs++
	s.end(errSignedOut(), func(x *stream) bool { return x.key == key })
}

// deleted ends what is about a sandbox.
func (s *streams) deleted(sandboxID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(sandbox.Errorf(sandbox.CodeSandboxNotFound, "the sandbox was deleted"), func(x *stream) bool { return x.about == sandboxID })
}

func (s *streams) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// Drain ends what would never end by itself, and lets no more of it begin.
func (a *API) Drain() {
	a.streams.mu.Lock()
	defer a.streams.mu.Unlock()
	a.streams.draining = true
	a.streams.end(errDraining(), func(x *stream) bool { return !x.bounded })
}

// hold registers an open request. The context that it returns ends with the
// request, the caller's session or other credential, what check stands for, or,
// unless it is bounded, a drain; context.Cause is a *sandbox.Error then. Reads and
// writes that wait for the client are cut with it. The handler calls release when
// it is done, and ends itself when the context does (see ended).
func (a *API) hold(c echo.Context, h held) (ctx context.Context, release func()) {
	who := admitted(c)
	ctx, cancel := context.WithCancelCause(c.Request().Context())
	x := &stream{held: h, key: who.key, cancel: cancel}
	suspect := a.streams.add(x, who.signOuts)
	control, body := http.NewResponseController(c.Response()), c.Request().ContentLength != 0
	cut := make(chan struct{})
	uncut := context.AfterFunc(ctx, func() {
		defer close(cut)
		if body {
			_ = control.SetReadDeadline(time.Now())
		}
		_ = control.SetWriteDeadline(time.Now().Add(lastWords))
	})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		a.watch(ctx, cancel, who, h, suspect)
	}()
	return ctx, func() {
		a.streams.remove(x)
		if !uncut() {
			<-cut // the next request on the connection has deadlines of its own
		}
		cancel(nil)
		<-watched
	}
}

const (
	defaultRecheck = 10 * time.Second
	// recheckTimeout bounds one check, and maxMisses how many in a row may fail to
	// tell.
	recheckTimeout = 10 * time.Second
	maxMisses      = 6
	// lastWords is how long the answer to a request may take that was ended.
	lastWords = time.Second
)

// watch ends a stream when its caller has lost the right to it.
func (a *API) watch(ctx context.Context, end context.CancelCauseFunc, who caller, h held, suspect bool) {
	tick := time.NewTicker(a.settings.Recheck)
	defer tick.Stop()
	for misses := 0; ; suspect = false {
		if !suspect {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		lost, err := recheck(ctx, who, h)
		switch {
		case lost != nil:
			end(lost)
			return
		case err == nil:
			misses = 0
			continue
		case ctx.Err() != nil:
			return
		}
		misses++
		a.Log.WarnContext(ctx, "whether a stream may go on could not be checked", "userId", who.user.ID, "misses", misses, "error", err)
		if misses == maxMisses {
			end(sandbox.Errorf(sandbox.CodeStoreAway, "whether this may go on could not be checked; try again").WithCause(err))
			return
		}
	}
}

// recheck returns as lost why the caller has no right any more, and as err why
// that cannot be told.
func recheck(ctx context.Context, who caller, h held) (lost, err error) {
	ctx, cancel := context.WithTimeout(ctx, recheckTimeout)
	defer cancel()
	err = who.valid(ctx)
	if errors.Is(err, account.ErrNoSession) {
		return errSignedOut(), nil
	}
	if err == nil && h.check != nil {
		err = h.check(ctx)
	}
	status := sandbox.CodeOf(err).Status()
	if err != nil && (status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusNotFound) {
		return err, nil
	}
	return nil, err
}

// ended is what a handler returns whose context from hold has ended. With a
// body that may still be coming, or half an answer, the connection is cut.
func ended(ctx context.Context, c echo.Context) error {
	if c.Response().Committed || c.Request().ContentLength != 0 && c.Get(bodyRead) == nil {
		panic(http.ErrAbortHandler)
	}
	c.Response().Header().Set("Connection", "close") // its deadlines are set
	return context.Cause(ctx)
}
