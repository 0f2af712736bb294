package doctor_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/agentpod/agentpod/shared/doctor"
)

func TestAWarningIsNoFailure(t *testing.T) {
	t.Parallel()
	report := doctor.Run(t.Context(), time.Minute, []doctor.Check{{Name: "it", Do: func(context.Context) (string, error) {
		return "", doctor.WarningError("mind this")
	}}})
	var lines strings.Builder
	if err := report.Print(&lines, false); err != nil || !report.OK || lines.String() != "! it: mind this\n" {
		t.Errorf("%+v, %q, %v", report, lines.String(), err)
	}
	raw, err := json.Marshal(report)
	if err != nil || !strings.Contains(string(raw), `"ok":true,"warning":true,"detail":"mind this"`) {
		t.Errorf("%s, %v", raw, err)
	}
}
