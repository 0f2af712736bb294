package daemon

import "slices"

// Call is what a server's command line asks for.
type Call struct {
	Command       string // the first one by default
	Help, Version bool
	JSON          bool // --json behind the command
}

// ParseCall reads a command line: nothing, help or version in any of their
// spellings, or one of the commands and --json or --help behind it. It returns
// false for anything else.
func ParseCall(args []string, commands ...string) (Call, bool) {
	call := Call{Command: commands[0]}
	if len(args) == 0 {
		return call, true
	}
	isHelp := func(arg string) bool { return slices.Contains([]string{"help", "--help", "-help", "-h"}, arg) }
	switch first := args[0]; {
	case isHelp(first):
		call.Help = true
	case slices.Contains([]string{"version", "--version", "-version"}, first):
		call.Version = true
	case slices.Contains(commands, first):
		call.Command = first
	default:
		return call, false
	}
	for _, arg := range args[1:] {
		switch {
		case arg == "--json" && !call.Help && !call.Version:
			call.JSON = true
		case isHelp(arg) && !call.Version:
			call.Help = true
		default:
			return Call{}, false
		}
	}
	return call, true
}
