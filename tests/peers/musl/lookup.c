/* Looks names up with this machine's or musl's getaddrinfo, and says so in JSON: one object, name → addresses, "none" or "error". */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static int by_text(const void *a, const void *b) { return strcmp((const char *)a, (const char *)b); }

int main(int count, char **names) {
  printf("{");
  for (int i = 1; i < count; i++) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *first = NULL;
    int code = getaddrinfo(names[i], NULL, &hints, &first);
    printf("%s\"%s\": ", i > 1 ? ", " : "", names[i]);
    if (code == EAI_NONAME || code == -5 /* EAI_NODATA, EAI_ADDRFAMILY */) {
      printf("\"none\"");
      continue;
    }
    if (code) {
      printf("\"error: %s\"", gai_strerror(code));
      continue;
    }
    char texts[64][INET6_ADDRSTRLEN];
    int found = 0;
    for (struct addrinfo *one = first; one && found < 64; one = one->ai_next) {
      void *address = one->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
                                                : (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
      inet_ntop(one->ai_family, address, texts[found++], INET6_ADDRSTRLEN);
    }
    freeaddrinfo(first);
    qsort(texts, found, INET6_ADDRSTRLEN, by_text);
    printf("[");
    for (int n = 0; n < found; n++) printf("%s\"%s\"", n ? ", " : "", texts[n]);
    printf("]");
  }
  printf("}\n");
  return 0;
}
