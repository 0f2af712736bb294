// Package shared holds nothing itself: the packages below it are what gateway,
// API and sandboxd have in common, and its test keeps the project's import rules.
package shared
