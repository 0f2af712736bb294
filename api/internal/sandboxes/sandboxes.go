// Package sandboxes is what the API does with single sandboxes: it keeps whose
// they are and what was last heard of them, and hands everything else to their
// provider.
package sandboxes
