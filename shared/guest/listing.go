package guest

import (
	"bytes"
	"encoding/json"
	"errors"
)

// bounded is a Listing that keeps MaxEntries entries of however many there are.
type bounded Listing

// UnmarshalJSON implements json.Unmarshaler.
func (b *bounded) UnmarshalJSON(raw []byte) error {
	var reply struct {
		Entries   json.RawMessage `json:"entries"`
		Truncated bool            `json:"truncated"`
	}
	if err := json.Unmarshal(raw, &reply); err != nil {
		return err
	}
	b.Entries, b.Truncated = []Entry{}, reply.Truncated
	if len(reply.Entries) == 0 || string(reply.Entries) == "null" {
		return nil
	}
	// One by one: eight megabytes of "{}" would be 200 as entries.
	dec := json.NewDecoder(bytes.NewReader(reply.Entries))
	if open, err := dec.Token(); err != nil || open != json.Delim('[') {
		return errors.New("the entries are not a list")
	}
	for dec.More() {
		if len(b.Entries) == MaxEntries {
			b.Truncated = true
			return nil
		}
		var e Entry
		if err := dec.Decode(&e); err != nil {
			return err
		}
		b.Entries = append(b.Entries, e)
	}
	return nil
}
