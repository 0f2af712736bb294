package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// point is one fault to inject, and what came of it.
type point struct {
	Kind       string      `json:"kind"`
	Genuine    bool        `json:"realOpenCode,omitempty"`
	Seed       uint64      `json:"seed"`
	Lane       string      `json:"lane"`
	Seconds    float64     `json:"seconds"`
	Missed     bool        `json:"missed,omitempty"` // the fault found nothing to hit
	Violations []violation `json:"violations,omitempty"`
	Logs       string      `json:"logs,omitempty"`

	kind kind
}

// again is how to run one point by itself.
func (p *point) again() string {
	which := "COUNT=1 REAL=0"
	if p.Genuine {
		which = "COUNT=0 REAL=1"
	}
	return fmt.Sprintf("make chaos SEED=%d KINDS=%s %s", p.Seed, p.Kind, which)
}

// plan draws the points of a run. One in the first place has the run's own seed, so
// that one point can be run again by its seed and kind. Kinds take turns, so that each
// comes as often as any other, in a seeded order with the probes first.
func plan(seed uint64, from []kind, count int, genuine bool) []*point {
	rng := rand.New(rand.NewPCG(seed, 0))
	var points []*point
	for len(points) < count {
		turn := rng.Perm(len(from))
		slices.SortStableFunc(turn, func(a, b int) int { return order(from[a]) - order(from[b]) })
		for _, i := range turn {
			if len(points) == count {
				break
			}
			own := rng.Uint64()
			if len(points) == 0 {
				own = seed
			}
			points = append(points, &point{Kind: from[i].name, Genuine: genuine, Seed: own, kind: from[i]})
		}
	}
	return points
}

// order puts probes before other kinds.
func order(k kind) int {
	if k.probe {
		return 0
	}
	return 1
}

// choose returns the kinds whose names match one of the patterns, all if there is none.
func choose(all []kind, patterns string, slowly, genuine bool) ([]kind, error) {
	var chosen []kind
	for _, k := range all {
		if k.genuine && !genuine || k.probe && genuine {
			continue
		}
		matches := patterns == "" && (slowly || !k.slowly)
		for pattern := range strings.SplitSeq(patterns, ",") {
			ok, err := path.Match(pattern, k.name)
			if err != nil {
				return nil, fmt.Errorf("the pattern %q of kinds: %w", pattern, err)
			}
			matches = matches || ok
		}
		if matches {
			chosen = append(chosen, k)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no kind is called %q; docs/reliability.md has their names", patterns)
	}
	return chosen, nil
}

// runner works points off on the lanes of a world.
type runner struct {
	world *world
	stop  bool      // at the first violation
	until time.Time // no point is begun after it; zero for never
	log   func(format string, args ...any)
	keep  func(l *lane, p *point, gatewayLog, apiLog string) string

	mu   sync.Mutex
	over bool
	errs []error
}

// run works all points off: first those that hit all lanes, a lane for each point, then
// those of a lane's own, several lanes at once.
func (r *runner) run(ctx context.Context, points []*point) error {
	var own, shared []*point
	for _, p := range points {
		if p.kind.shared {
			shared = append(shared, p)
		} else {
			own = append(own, p)
		}
	}
	for len(shared) > 0 && !r.ended() {
		var round []*point
		var rest []*point
		for _, p := range shared { // of one kind
			if p.Kind == shared[0].Kind && len(round) < len(r.world.lanes) {
				round = append(round, p)
			} else {
				rest = append(rest, p)
			}
		}
		shared = rest
		r.round(ctx, round)
	}
	queue := make(chan *point)
	var lanes sync.WaitGroup
	for i := range r.world.lanes {
		lanes.Go(func() {
			for p := range queue {
				r.one(ctx, i, p)
			}
		})
	}
	for _, p := range own {
		if r.ended() {
			break
		}
		queue <- p
	}
	close(queue)
	lanes.Wait()
	return errors.Join(r.errs...)
}

func (r *runner) ended() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over || !r.until.IsZero() && time.Now().After(r.until)
}

// fail ends the run for an error of the harness's own.
func (r *runner) fail(p *point, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	r.errs = append(r.errs, fmt.Errorf("%s, seed %d: %w", p.Kind, p.Seed, err))
}

// one runs a point on a lane.
func (r *runner) one(ctx context.Context, at int, p *point) {
	if r.ended() {
		return
	}
	l := r.world.lanes[at]
	s := newScene(l, p)
	finish := r.begin(ctx, s, p)
	if err := p.kind.inject(ctx, s); err != nil {
		r.fail(p, err)
	}
	finish(at)
}

// round runs points of a shared kind at once: the fault happens once, and each lane
// looks what it has done to it.
func (r *runner) round(ctx context.Context, points []*point) {
	scenes := make([]*scene, len(points))
	finish := make([]func(int), len(points))
	var group sync.WaitGroup
	for i, p := range points {
		scenes[i] = newScene(r.world.lanes[i], p)
		if !p.kind.probe {
			group.Go(func() { finish[i] = r.begin(ctx, scenes[i], p) })
		} else {
			finish[i] = r.begin(ctx, scenes[i], p)
		}
		scenes[0].round = append(scenes[0].round, scenes[i].lane)
	}
	group.Wait()
	if err := points[0].kind.inject(ctx, scenes[0]); err != nil {
		r.fail(points[0], err)
	}
	for i := range points {
		group.Go(func() { finish[i](i) })
	}
	group.Wait()
}

func newScene(l *lane, p *point) *scene {
	p.Lane = l.name
	return &scene{lane: l, rng: rand.New(rand.NewPCG(p.Seed, 4)), oracle: &oracle{lane: l, kind: &p.kind}}
}

// begin starts the workload of a point and waits for the moment of its fault. What it
// returns ends the workload and lets the oracle look.
func (r *runner) begin(ctx context.Context, s *scene, p *point) (finish func(at int)) {
	l := s.lane
	began, gatewayLog, apiLog := time.Now(), len(l.gateway.Log()), len(l.api.Log())
	l.events.forget()
	s.oracle.work = &workload{lane: l}
	if !p.kind.probe {
		s.work = start(ctx, l, p.Seed)
		s.oracle.work = s.work
		if wrong := within(ctx, requestBound, func() string {
			if l.ledger.get(lasting) == nil {
				return "no"
			}
			return ""
		}); wrong != "" {
			s.say(0, "the sandbox %s cannot be made within %s", lasting, requestBound)
		}
		s.moment(ctx)
	}
	return func(at int) {
		if strings.HasPrefix(p.Kind, "store-") || strings.HasSuffix(p.Kind, "-outage") {
			l.stored = time.Now()
		}
		if s.work != nil {
			pause(ctx, s.between(200*time.Millisecond, 800*time.Millisecond))
			s.work.end()
		}
		p.Violations = s.oracle.check(ctx)
		r.figures(ctx, s, p)
		p.Seconds, p.Missed = time.Since(began).Seconds(), s.missed
		r.log("%-28s %-20d %6.1f s  %d violations", p.Kind, p.Seed, p.Seconds, len(p.Violations))
		if len(p.Violations) == 0 {
			return
		}
		p.Logs = r.keep(l, p, l.gateway.Log()[gatewayLog:], l.api.Log()[apiLog:])
		for _, v := range p.Violations {
			r.log("violation %d: %s", v.Number, v.What)
		}
		r.log("  again: %s   logs: %s", p.again(), p.Logs)
		if err := r.replace(ctx, at); err != nil {
			r.fail(p, err)
		}
	}
}

// figures compares what the gateway has gathered with what it had after its first point.
func (r *runner) figures(ctx context.Context, s *scene, p *point) {
	l := s.lane
	now, err := l.measure(ctx)
	if err != nil {
		s.say(0, "the gateway's figures cannot be read: %v", err)
		p.Violations = s.oracle.found
		return
	}
	if l.calm == nil {
		l.calm = &now
		return
	}
	if wrong := grown(*l.calm, now); wrong != "" {
		s.say(0, "%s", wrong)
		p.Violations = s.oracle.found
	}
}

// replace puts a new lane in the place of one that was found broken, so that the next
// point begins well.
func (r *runner) replace(ctx context.Context, at int) error {
	r.mu.Lock()
	r.over = r.over || r.stop
	r.mu.Unlock()
	old := r.world.lanes[at]
	if err := errors.Join(ended(old.gateway.Stop(syscall.SIGKILL)), old.close(), old.clear(ctx)); err != nil {
		return err
	}
	fresh, err := newLane(ctx, r.world, old.name+"x", old.model != nil)
	if err != nil {
		return err
	}
	r.world.lanes[at] = fresh
	return nil
}

// clear removes what a lane that is closed has left in the engine.
func (l *lane) clear(ctx context.Context) error {
	e := l.world.engine
	containers, err := e.containers(ctx, l.installation)
	if err != nil {
		return err
	}
	for name := range containers {
		if err := e.remove(ctx, name); err != nil {
			return err
		}
	}
	volumes, err := e.volumes(ctx, l.installation)
	if err != nil {
		return err
	}
	for _, name := range volumes {
		_ = e.removeVolume(ctx, name) // it goes with the engine at the latest
	}
	_ = e.call(ctx, http.MethodDelete, "/networks/agentpod-"+l.installation, nil, nil) // the same
	return nil
}
