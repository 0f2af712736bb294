package tree

// OnSync replaces what makes a restore durable.
func (t *Tree) OnSync(sync func(fd int) error) { t.sync = sync }
