// Package guest is the contract and the client of sandboxd, the small program
// that is PID 1 in every sandbox. Everything that comes back from a guest is
// as trustworthy as the agent inside: the client bounds it in bytes and time.
//
// Every request carries "Authorization: Bearer TOKEN". sandboxd knows only the
// token's SHA-256 (environment TokenHashEnv, 64 hex digits), so neither the
// engine's inspect nor the sandbox's environment holds a usable token.
package guest

import (
	"encoding/json"
	"time"
)

// Port is where sandboxd listens inside the container, on all interfaces.
const Port = 4095

// TokenHashEnv names the environment variable with the hex SHA-256 of the token.
const TokenHashEnv = "SANDBOXD_TOKEN_SHA256"

// Paths inside every sandbox.
const (
	Home      = "/home/user"
	Workspace = "/home/user/workspace"
)

// Routes of sandboxd.
const (
	RouteStatus   = "/v1/status"   // GET → Status
	RouteOpenCode = "/v1/opencode" // GET → OpenCode, at once: nothing is asked for it
	RouteStart    = "/v1/start"    // POST StartRequest → Applied, when OpenCode is ready
	RouteConfig   = "/v1/config"   // PUT Config → Applied (200), or 202 with Pending
	RouteStop     = "/v1/stop"     // POST StopRequest → Status
	RouteExec     = "/v1/exec"     // POST ExecRequest → stream of ExecEvent, one JSON object a line
	RouteFiles    = "/v1/files"    // GET, PUT, DELETE ?path=, relative to Home
)

// What zero means in a request, unless its field says otherwise.
const (
	// DefaultStartTimeout bounds StartRequest's wait for readiness.
	DefaultStartTimeout = 60 * time.Second
	// DefaultStopGrace is StopRequest's time between SIGTERM and SIGKILL.
	DefaultStopGrace = 2 * time.Second
	// DefaultExecTimeout bounds a command.
	DefaultExecTimeout = 60 * time.Second
	// DefaultMaxOutput caps stdout and stderr of a command, each, in bytes.
	DefaultMaxOutput = 1 << 20
)

// Config is what sandboxd renders outside the workspace for OpenCode.
type Config struct {
	// OpenCode is opencode.json; empty means none is written.
	OpenCode json.RawMessage `json:"opencode,omitempty"`
	// AgentsMD is the global AGENTS.md; nil means none.
	AgentsMD *string `json:"agentsMd,omitempty"`
	Files    []File  `json:"files,omitempty"`
	// Auth are credentials by provider, as OpenCode's auth route takes them.
	// A provider that an earlier Config named and this one does not is removed.
	Auth map[string]json.RawMessage `json:"auth,omitempty"`
}

// File is an agent, command, tool or plugin.
type File struct {
	Type      string `json:"type"`      // agent, command, tool or plugin
	Name      string `json:"name"`      // one safe path element, without extension
	Extension string `json:"extension"` // md, ts or js
	Content   string `json:"content"`
}

// Key names what a file counts as in Applied.Written: "agent/helper.md".
func (f File) Key() string { return f.Type + "/" + f.Name + "." + f.Extension }

// The other keys in Applied.Written.
const (
	KeyOpenCode = "opencode.json"
	KeyAgentsMD = "AGENTS.md"
	KeyAuth     = "auth"
)

// StartRequest asks for OpenCode to be running with Config. It is idempotent:
// while OpenCode runs with the same password only the config is applied.
type StartRequest struct {
	Password string `json:"password"`
	Config   Config `json:"config"`
	// Directory is OpenCode's working directory, absolute; empty means Workspace.
	Directory string `json:"directory,omitempty"`
	// TimeoutMs bounds the wait for readiness, in milliseconds; 0 means
	// DefaultStartTimeout.
	TimeoutMs int64 `json:"timeoutMs,omitempty"`
	// Warm has an OpenCode that is started go through a turn, with a model that
	// sandboxd plays and nobody outside, so that its first real turn is as quick
	// as any. Nothing of it is left. The start fails if the turn does.
	Warm bool `json:"warm,omitempty"`
	// Reload has an OpenCode that runs look at the workspace anew, even if the
	// config is the same: what came there since counts.
	Reload bool `json:"reload,omitempty"`
	// NoProjectConfig keeps an OpenCode that is started from reading the config of
	// the workspace. It is given the workspace's AGENTS.md all the same.
	NoProjectConfig bool `json:"noProjectConfig,omitempty"`
	// MayBare has an OpenCode that does not get ready started once more without the
	// plugins and configs of the home and the workspace, for TimeoutMs again.
	MayBare bool `json:"mayBare,omitempty"`
}

// Applied says what a config change wrote.
type Applied struct {
	// Written are the keys of what was written or removed; empty when nothing changed.
	Written []string `json:"written"`
	// Pending is set when the sandbox is busy: the config is applied when idle.
	Pending bool   `json:"pending,omitempty"`
	Version string `json:"version,omitempty"`
	// Bare is OpenCode.Bare of what was started.
	Bare bool `json:"bare,omitempty"`
}

// OpenCode's states as sandboxd sees them.
const (
	StateStopped    = "stopped"    // not asked to run, or asked to stop
	StateStarting   = "starting"   // spawned, not ready yet
	StateReady      = "ready"      // health said so
	StateRestarting = "restarting" // died by itself, waiting to be spawned again
	// StateUnknown is what Client makes of any other word; sandboxd never says it.
	StateUnknown = "unknown"
)

// Status is how the sandbox fares.
type Status struct {
	OpenCode OpenCode `json:"opencode"`
	Busy     bool     `json:"busy"`
	// Reasons say why it is busy: "turn", "command" or "terminal", a colon and detail.
	Reasons []string `json:"reasons,omitempty"`
	// PendingConfig is set while a config waits for the sandbox to be idle.
	PendingConfig bool `json:"pendingConfig,omitempty"`
}

// OpenCode is its process as sandboxd sees it.
type OpenCode struct {
	State    string    `json:"state"`
	Version  string    `json:"version,omitempty"`
	PID      int       `json:"pid,omitempty"`
	Restarts int       `json:"restarts"`           // since sandboxd started
	LastExit string    `json:"lastExit,omitempty"` // such as "exit status 1" or "signal: killed"
	Since    time.Time `json:"since"`              // when the state was entered
	// Bare is set while OpenCode runs without the plugins and configs that lie in
	// the home and in the workspace: with them it did not get ready.
	Bare bool `json:"bare,omitempty"`
}

// StopRequest ends OpenCode and every process but sandboxd: SIGTERM, and
// SIGKILL when GraceMs (milliseconds, 0 means DefaultStopGrace) has passed.
type StopRequest struct {
	GraceMs int64 `json:"graceMs,omitempty"`
}

// ExecRequest runs one command.
type ExecRequest struct {
	Command    []string          `json:"command"`
	WorkingDir string            `json:"workingDir,omitempty"` // absolute, or relative to Workspace
	Env        map[string]string `json:"env,omitempty"`        // added to the sandbox's own
	TimeoutMs  int64             `json:"timeoutMs,omitempty"`  // 0 means DefaultExecTimeout
	// MaxOutput caps stdout and stderr, each, in bytes; what is beyond is read
	// and dropped, and Truncated is set. 0 means DefaultMaxOutput.
	MaxOutput int64 `json:"maxOutput,omitempty"`
}

// The types of an ExecEvent.
const (
	EventStdout = "stdout"
	EventStderr = "stderr"
	EventExit   = "exit"
)

// ExecEvent is one line of the stream of an exec. Type is EventStdout,
// EventStderr or EventExit, which is the last one and always comes.
type ExecEvent struct {
	Type      string `json:"type"`
	Data      []byte `json:"data,omitempty"`
	ExitCode  int    `json:"exitCode,omitempty"` // 128+n for a signal n, 127 when it could not be started
	Truncated bool   `json:"truncated,omitempty"`
	TimedOut  bool   `json:"timedOut,omitempty"`
	Error     string `json:"error,omitempty"` // why it could not be started
}

// Entry is one line of a listing. Type is file, directory, symlink or other.
type Entry struct {
	Name       string    `json:"name"`
	Type       string    `json:"type"`
	Size       int64     `json:"size"`
	Mode       uint32    `json:"mode"` // permission bits with setuid, setgid, sticky as in stat(2)
	ModifiedAt time.Time `json:"modifiedAt"`
}

// Listing is a folder. MaxEntries bounds it.
type Listing struct {
	Entries   []Entry `json:"entries"`
	Truncated bool    `json:"truncated,omitempty"`
}

// MaxEntries is how many entries of a folder are listed.
const MaxEntries = 10_000

// TypeHeader tells on a GET of RouteFiles whether the body is a file's bytes
// ("file") or a Listing as JSON ("directory"); on a PUT, ModeQuery gives the
// permission bits in octal (default 0644, parents 0755).
const (
	TypeHeader = "X-Sandbox-Entry"
	ModeQuery  = "mode"
	PathQuery  = "path"
)

// ErrorBody is the body of every error of sandboxd. Code is one of
// shared/sandbox's codes, such as file_not_found or config_rejected.
type ErrorBody struct {
	Error string `json:"error"`
	Code  string `json:"code"`
}
