// What the kubelet itself would write into a pod's resolv.conf: JSON lines in, JSON lines out.
//
// In: {"pod": Pod, "resolvConf": path or "", "clusterDNS": [IP…], "domain": "…"}. Out: {"servers": […], "searches": […], "options": […]}.
// The code that decides is the kubelet's own package; this file only carries values to it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sort"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/kubelet/network/dns"
)

type question struct {
	Pod        v1.Pod   `json:"pod"`
	ResolvConf string   `json:"resolvConf"`
	ClusterDNS []string `json:"clusterDNS"`
	Domain     string   `json:"domain"`
}

type answer struct {
	Servers  []string `json:"servers"`
	Searches []string `json:"searches"`
	Options  []string `json:"options"`
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 1<<20), 1<<20)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked question
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		var servers []net.IP
		for _, text := range asked.ClusterDNS {
			servers = append(servers, net.ParseIP(text))
		}
		node := &v1.ObjectReference{Kind: "Node", Name: "node"}
		configurer := dns.NewConfigurer(record.NewFakeRecorder(1000), node, nil, servers, asked.Domain, asked.ResolvConf)
		found, err := configurer.GetPodDNS(context.Background(), &asked.Pod)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		sort.Strings(found.Options) // the kubelet's order is that of a map: another one every time
		if err := out.Encode(answer{found.Servers, found.Searches, found.Options}); err != nil {
			os.Exit(2)
		}
	}
}
