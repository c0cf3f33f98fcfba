// Looks names up as a Go program without cgo does, and says so in JSON: one object, name → addresses or the error.
//
// Arguments: names; `srv:NAME` asks for SRV records of a whole name, `ptr:ADDRESS` for a reverse name.
package main

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"sort"
	"strings"
	"time"
)

func main() {
	resolver := &net.Resolver{PreferGo: true}
	found := map[string]any{}
	for _, name := range os.Args[1:] {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		found[name] = look(ctx, resolver, name)
		cancel()
	}
	_ = json.NewEncoder(os.Stdout).Encode(found)
}

func look(ctx context.Context, resolver *net.Resolver, name string) any {
	var texts []string
	var err error
	switch {
	case strings.HasPrefix(name, "srv:"):
		var records []*net.SRV
		_, records, err = resolver.LookupSRV(ctx, "", "", name[4:])
		for _, record := range records {
			texts = append(texts, record.Target)
		}
	case strings.HasPrefix(name, "ptr:"):
		texts, err = resolver.LookupAddr(ctx, name[4:])
	default:
		var addresses []net.IPAddr
		addresses, err = resolver.LookupIPAddr(ctx, name)
		for _, address := range addresses {
			texts = append(texts, address.String())
		}
	}
	if err != nil {
		if failure, ok := err.(*net.DNSError); ok && failure.IsNotFound {
			return "none"
		}
		return "error: " + err.Error()
	}
	sort.Strings(texts)
	return texts
}
