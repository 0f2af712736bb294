package guest

import (
	"slices"

	"github.com/agentpod/agentpod/shared/printable"
)

// Bounds on what a guest says of itself: it goes into records and answers.
const (
	maxVersion  = 64 // bytes
	maxLastExit = 256
	maxReason   = 256
	maxReasons  = 32
	maxKey      = 512
)

func (s Status) cleaned() Status {
	s.OpenCode = s.OpenCode.cleaned()
	s.Reasons = lines(s.Reasons[:min(len(s.Reasons), maxReasons)], maxReason)
	return s
}

func (o OpenCode) cleaned() OpenCode {
	if !slices.Contains([]string{StateStopped, StateStarting, StateReady, StateRestarting}, o.State) {
		o.State = StateUnknown
	}
	o.Version = printable.Line(o.Version, maxVersion)
	o.LastExit = printable.Line(o.LastExit, maxLastExit)
	o.PID, o.Restarts = max(0, o.PID), max(0, o.Restarts)
	return o
}

func (a Applied) cleaned() Applied {
	a.Version = printable.Line(a.Version, maxVersion)
	a.Written = lines(a.Written, maxKey)
	return a
}

// lines cleans a list in place.
func lines(list []string, limit int) []string {
	for i := range list {
		list[i] = printable.Line(list[i], limit)
	}
	return list
}
