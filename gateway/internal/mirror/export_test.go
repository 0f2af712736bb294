package mirror

import "time"

// SetClock makes a mirror go by another clock.
func (m *Mirror) SetClock(now func() time.Time) { m.now = now }
