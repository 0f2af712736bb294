package snapshot

import "time"

// SetClock makes an engine go by another clock.
func (e *Engine) SetClock(now func() time.Time) { e.now = now }
