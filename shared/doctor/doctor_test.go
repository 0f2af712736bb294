package doctor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/agentpod/agentpod/shared/doctor"
	"github.com/agentpod/agentpod/shared/sandbox"
)

func says(detail string, err error) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return detail, err }
}

func TestALineForEachCheckSaysWhatToDo(t *testing.T) {
	t.Parallel()
	away := sandbox.Errorf(sandbox.CodeEngineAway, "no engine answers; start it").WithCause(errors.New("connection\nrefused\x1b[2J"))
	report := doctor.Run(t.Context(), time.Minute, []doctor.Check{
		{Name: "disk", Do: says("3 GiB are free", nil)},
		{Name: "engine", Do: says("", away)},
		{Name: "image", Needs: []string{"disk", "engine"}, Do: says("", errors.New("it was looked for without an engine"))},
		{Name: "sandbox", Needs: []string{"image"}, Do: says("", errors.New("it was made without an image"))},
		{Name: "port", Do: says("", errors.New("the port is taken; give another"))},
	})
	var lines bytes.Buffer
	if err := report.Print(&lines, false); err != nil {
		t.Fatal(err)
	}
	want := `✔ disk: 3 GiB are free
✗ engine: no engine answers; start it (connection refused [2J)
✗ image: not checked, as "engine" failed
✗ sandbox: not checked, as "image" failed
✗ port: the port is taken; give another
`
	if lines.String() != want {
		t.Errorf("it says\n%s", lines.String())
	}
	var object bytes.Buffer
	if err := report.Print(&object, true); err != nil {
		t.Fatal(err)
	}
	var got doctor.Report
	if err := json.Unmarshal(object.Bytes(), &got); err != nil || got.OK || !slices.Equal(got.Checks, report.Checks) || !got.Checks[2].Skipped || got.Checks[1].Skipped {
		t.Errorf("%v: %s", err, object.String())
	}
	if report := doctor.Run(t.Context(), time.Minute, []doctor.Check{{Name: "disk", Do: says("", nil)}}); !report.OK {
		t.Errorf("%+v", report)
	}
}

func TestEveryMistakeOfAConfigurationHasItsLine(t *testing.T) {
	t.Parallel()
	report := doctor.Failed("configuration", errors.Join(errors.New("A must be b"), errors.New("C must be d")), doctor.Check{Name: "disk"})
	if report.OK || len(report.Checks) != 3 || report.Checks[1].Fix != "C must be d" || !report.Checks[2].Skipped {
		t.Errorf("%+v", report)
	}
}

func TestChecksRunSideBySideAndNoneForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		waits := func(ctx context.Context) (string, error) {
			<-ctx.Done()
			return "", errors.New("the server did not answer; start it")
		}
		begun := time.Now()
		report := doctor.Run(t.Context(), 10*time.Second, []doctor.Check{
			{Name: "one", Do: waits},
			{Name: "two", Do: waits},
			{Name: "deaf", Do: func(context.Context) (string, error) {
				<-release
				return "", nil
			}},
		})
		if took := time.Since(begun); took > 11*time.Second {
			t.Errorf("it took %s", took)
		}
		if report.OK || report.Checks[1].Fix != "the server did not answer; start it" || !strings.Contains(report.Checks[2].Fix, "within 10s") {
			t.Errorf("%+v", report)
		}
		close(release)
	})
}
