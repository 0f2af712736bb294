// Package api is the module of the thin API in front of the gateway: accounts,
// agent tasks, teams and providers. It holds no sandbox logic.
package api
