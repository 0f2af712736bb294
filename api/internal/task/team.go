package task

import (
	"context"
	"errors"
	"time"

	"github.com/agentpod/agentpod/api/internal/provider"
	"github.com/agentpod/agentpod/shared/printable"
	"github.com/agentpod/agentpod/shared/sandbox"
)

// Agent is what one agent of a team is asked to do.
type Agent struct {
	Role    string
	Message string
	Model   *sandbox.Model
}

// TeamRequest asks several agents at once, each in a new sandbox of its own with
// a clone of the repository, if there is one.
type TeamRequest struct {
	UserID    string
	Agents    []Agent
	GitURL    string
	GitBranch string
	Provider  string
}

// LaunchTeam begins a team's tasks, all or none, and returns them in the order of
// the agents. Errors are those of Launch.
func (s *Service) LaunchTeam(ctx context.Context, req TeamRequest) (Team, []Member, error) {
	if len(req.Agents) == 0 || len(req.Agents) > s.settings.TeamSize {
		return Team{}, nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "a team has 1 to %d agents", s.settings.TeamSize)
	}
	team := Team{
		ID: NewID("tem-"), UserID: req.UserID, CreatedAt: time.Now(),
	}
	jobs := make([]*job, len(req.Agents))
	rows, members := make([]NewMember, len(req.Agents)), make([]Member, len(req.Agents))
	for i, agent := range req.Agents {
		if agent.Role == "" || len(agent.Role) > maxName || printable.Line(agent.Role, maxName) != agent.Role {
			return Team{}, nil, sandbox.Errorf(sandbox.CodeInvalidRequest, "agent %d of the team needs a role: a short text", i+1)
		}
		j, box, err := s.prepare(ctx, Request{
			UserID: req.UserID, Message: agent.Message, Model: agent.Model, GitURL: req.GitURL, GitBranch: req.GitBranch, Provider: req.Provider,
		}, provider.MultiAgent, PrefixTeam)
		if err != nil {
			if e, ok := errors.AsType[*sandbox.Error](err); ok && e.Code == sandbox.CodeInvalidRequest {
				err = sandbox.Errorf(e.Code, "agent %d of the team: %s", i+1, e.Message)
			}
			return Team{}, nil, err
		}
		team.GitURL, team.GitBranch = j.task.GitURL, j.task.GitBranch
		// The whole team is at one place, whatever becomes of it meanwhile.
		team.Provider, req.Provider = j.task.Provider, j.task.Provider
		jobs[i], rows[i] = j, NewMember{Role: agent.Role, Task: j.task, Sandbox: box}
		members[i] = Member{Agent: TeamAgent{TeamID: team.ID, Position: int64(i), Role: agent.Role, TaskID: j.task.ID}, Task: j.task}
	}
	if err := s.admit(jobs...); err != nil {
		return Team{}, nil, err
	}
	if err := s.Teams.Create(ctx, team, rows); err != nil {
		for _, j := range jobs {
			s.forget(j)
		}
		return Team{}, nil, err
	}
	for _, j := range jobs {
		s.start(ctx, j)
	}
	return team, members, nil
}

// Team returns a user's team. Errors: team_not_found.
func (s *Service) Team(ctx context.Context, userID, id string) (Team, []Member, error) {
	team, members, err := s.Teams.Get(ctx, userID, id)
	if errors.Is(err, ErrNotFound) {
		err = sandbox.Errorf(sandbox.CodeTeamNotFound, "there is no team %q", printable.Line(id, maxName))
	}
	return team, members, err
}
