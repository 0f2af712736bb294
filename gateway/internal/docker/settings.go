package docker

import (
	"errors"
	"fmt"
	"regexp"
	"time"
)

// Reach says how the gateway gets to the ports of a sandbox.
type Reach string

// The ways to reach a sandbox.
const (
	// ReachAuto is ReachDirect when the bridge of the installation's network is
	// an interface of this process (the gateway runs on the engine's host, or
	// in a container with the host's network), else ReachPublished.
	ReachAuto Reach = "auto"
	// ReachDirect dials the container's own address; nothing is published.
	ReachDirect Reach = "direct"
	// ReachPublished publishes the two ports on the loopback address of the
	// engine's host, at ports that the engine chooses.
	ReachPublished Reach = "published"
)

// Settings are what every container of an installation has in common. The
// installation, the image and the limits, from Memory to LogMaxFiles, are
// required; a zero field of the others means its default.
type Settings struct {
	// Installation tells the containers, volumes and networks of one gateway
	// from those of another on the same engine: 1 to 32 lower-case letters and
	// digits. It has no dash, so that agentpod-INSTALLATION-ID reads one way only.
	Installation string
	// Image is what sandboxes run, such as "agentpod-sandbox:dev". It is never
	// pulled.
	Image string
	// Host is the engine's address (unix://, tcp://); empty means DOCKER_HOST
	// and its companions, and without these the default socket.
	Host string
	// Network is the name of the installation's bridge network, by default
	// "agentpod-" and the installation.
	Network string
	// Memory is the limit of memory and swap together, in bytes.
	Memory int64
	// CPUs is how many processors a sandbox may use, at most as many as the
	// engine has.
	CPUs float64
	// Pids bounds processes and threads.
	Pids int64
	// NoFile bounds the open files of a process. An engine without the right to
	// raise limits cannot give more than it has itself.
	NoFile int64
	// TmpSize and RunSize are the sizes of the tmpfs on /tmp and /run in bytes.
	// What lies in them counts as memory.
	TmpSize int64
	RunSize int64
	// LogMaxSize is the size in bytes of one log file of a container and
	// LogMaxFiles how many are kept.
	LogMaxSize  int64
	LogMaxFiles int
	// Runtime is the engine's runtime class (runc, runsc); empty means the
	// engine's default.
	Runtime string
	// Reach is ReachAuto by default.
	Reach Reach
	// CallTimeout bounds a call to the engine, and the beginning of a stream;
	// 30 s. SlowTimeout bounds a create, start, stop (besides its grace) and
	// remove; 60 s.
	CallTimeout time.Duration
	SlowTimeout time.Duration
}

// minMemory is what the engine itself asks for.
const minMemory = 6 << 20

var installationPattern = regexp.MustCompile(`^[a-z0-9]{1,32}$`)

func (s Settings) withDefaults() Settings {
	orDefault(&s.Network, "agentpod-"+s.Installation)
	orDefault(&s.Reach, ReachAuto)
	orDefault(&s.CallTimeout, 30*time.Second)
	orDefault(&s.SlowTimeout, time.Minute)
	return s
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (s Settings) validate() error {
	var problems []error
	complain := func(bad bool, format string, args ...any) {
		if bad {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	complain(!installationPattern.MatchString(s.Installation),
		"the installation id %q must be 1 to 32 lower-case letters and digits", s.Installation)
	complain(s.Image == "", "the sandbox image has no name")
	complain(s.Memory < minMemory, "the memory limit of %d bytes is below the engine's minimum of %d", s.Memory, minMemory)
	complain(s.CPUs < 0.01, "the CPU limit %g is below the engine's minimum of 0.01", s.CPUs)
	complain(s.Pids < 1, "the limit of processes must be set and positive, not %d", s.Pids)
	complain(s.NoFile < 1, "the limit of open files must be set and positive, not %d", s.NoFile)
	complain(s.TmpSize < 1, "the size of /tmp must be set and positive, not %d", s.TmpSize)
	complain(s.RunSize < 1, "the size of /run must be set and positive, not %d", s.RunSize)
	complain(s.LogMaxSize < 1, "the size of a log file must be set and positive, not %d", s.LogMaxSize)
	complain(s.LogMaxFiles < 1, "the number of log files must be set and positive, not %d", s.LogMaxFiles)
	complain(s.CallTimeout < 0 || s.SlowTimeout < 0, "the timeouts of engine calls must be positive")
	switch s.Reach {
	case ReachAuto, ReachDirect, ReachPublished:
	default:
		complain(true, "reach is %q; it must be %s, %s or %s", s.Reach, ReachAuto, ReachDirect, ReachPublished)
	}
	return errors.Join(problems...)
}
