package opencode

import (
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/agentpod/agentpod/container/internal/folder"
)

// mend makes the folders that OpenCode and sandboxd need what they have to be,
// and clears the way for auth.json. What fails is only logged: OpenCode may
// start all the same.
func (s *Supervisor) mend() {
	names := []string{path.Dir(authFile), path.Dir(managedFile), ".local/state/opencode", ".config/opencode", ".cache/opencode"}
	if workspace, err := filepath.Rel(s.set.Home, s.set.Workspace); err == nil {
		names = append(names, filepath.ToSlash(workspace))
	}
	for _, name := range names {
		if err := folder.Ensure(s.home, name); err != nil {
			s.set.Log.Warn("make a folder of the home usable", "error", err)
		}
	}
	if err := mendAuth(s.home); err != nil {
		s.set.Log.Warn("clear the way for auth.json", "error", err)
	}
}

// workingDir returns the directory that was asked for, made again if it is
// gone, and else the nearest thing to it in which a process can start.
func (s *Supervisor) workingDir(asked string) string {
	s.mend()
	if err := os.MkdirAll(asked, 0o755); err != nil { //nolint:gosec // the agent's own folder, as a login would make it
		s.set.Log.Warn("make OpenCode's working directory", "error", err)
	}
	for _, dir := range []string{asked, s.set.Workspace, s.set.Home} {
		info, err := os.Stat(dir)
		if err == nil && info.IsDir() && unix.Access(dir, unix.X_OK) == nil {
			return dir
		}
	}
	return "/"
}
