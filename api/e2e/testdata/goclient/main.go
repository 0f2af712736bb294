// Command goclient uses the clients that oapi-codegen has made of both documents.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/agentpod/agentpod/api/e2e/testdata/goclient/api"
	"github.com/agentpod/agentpod/api/e2e/testdata/goclient/gateway"
)

func bearer(token string) func(context.Context, *http.Request) error {
	return func(_ context.Context, r *http.Request) error {
		r.Header.Set("Authorization", "Bearer "+token)
		return nil
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	got := map[string]any{}

	g := must(gateway.NewClientWithResponses(os.Getenv("GATEWAY_URL"), gateway.WithRequestEditorFn(bearer(os.Getenv("GATEWAY_TOKEN")))))
	user := "nobody"
	list := must(g.GetSandboxesWithResponse(ctx, &gateway.GetSandboxesParams{UserId: &user}))
	if list.JSON200 != nil {
		got["sandboxes"] = len(list.JSON200.Sandboxes)
	}
	if none := must(g.GetSandboxIdWithResponse(ctx, "none")); none.JSONDefault != nil {
		got["none"] = none.JSONDefault.Code
	}

	a := must(api.NewClientWithResponses(os.Getenv("API_URL"), api.WithRequestEditorFn(bearer(os.Getenv("API_TOKEN")))))
	made := must(a.PostApiV2AgentsTemplatesWithResponse(ctx, api.PostApiV2AgentsTemplatesJSONRequestBody{Name: "from Go", Prompt: "Say hello."}))
	all := must(a.GetApiV2AgentsTemplatesWithResponse(ctx, nil))
	if made.JSON201 != nil && all.JSON200 != nil {
		got["made"] = made.JSON201.Name
		for _, t := range *all.JSON200 {
			if t.Id == made.JSON201.Id {
				got["listed"] = !t.IsSystem
			}
		}
	}
	provider := api.Provider("cloudflare")
	if wrong := must(a.PostApiV2SandboxesWithResponse(ctx, api.PostApiV2SandboxesJSONRequestBody{Name: "x", Provider: &provider})); wrong.JSONDefault != nil {
		got["wrong"] = wrong.JSONDefault.Code
	}
	fmt.Println(string(must(json.Marshal(got))))
}
