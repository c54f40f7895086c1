/* A Modbus server on libmodbus: the independent counterpart of our client.
 *
 *     modbus_server tcp PORT           (0: a free one)      prints "listening PORT"
 *     modbus_server rtu DEVICE UNIT    (19200 8N1)          prints "listening 0"
 *
 * Then one line a request on stdout: "FUNCTION ADDRESS COUNT".
 *
 *     holding 0..99     address in the high byte, number of the answer (mod 256) in the low byte; 50..53 do not exist
 *     holding 100..199  values of all types, see fill()
 *     input   0..9      1000 + address
 *     coil    0..2999   address % 3 == 0;     discrete 0..2999  address % 5 == 0
 */
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <unistd.h>
#include <arpa/inet.h>

#define HOLE_FIRST 50
#define HOLE_LAST 53

static modbus_mapping_t *map;
static unsigned answers;

static void fill(void) {
    uint16_t *r = map->tab_registers;
    r[100] = (uint16_t)-2;
    r[101] = 65534;
    MODBUS_SET_INT32_TO_INT16(r, 102, -100000);
    MODBUS_SET_INT32_TO_INT16(r, 104, 4000000000u);
    MODBUS_SET_INT64_TO_INT16(r, 106, -5000000000LL);
    /* 123.456f is 0x42f6e979. Not modbus_set_float_abcd() and its sisters: they swap bytes in some releases. */
    r[110] = 0x42f6, r[111] = 0xe979; /* ABCD */
    r[112] = 0xe979, r[113] = 0x42f6; /* CDAB */
    r[114] = 0xf642, r[115] = 0x79e9; /* BADC */
    r[116] = 0x79e9, r[117] = 0xf642; /* DCBA */
    r[118] = 0x0105;
    for (int i = 0; i < 5; i++) r[120 + i] = (uint16_t)("Pump-11 \0x"[2 * i] << 8 | "Pump-11 \0x"[2 * i + 1]);
    MODBUS_SET_INT32_TO_INT16(r, 130, 0x7fc00000); /* NaN */
    for (int i = 0; i < 10; i++) map->tab_input_registers[i] = (uint16_t)(1000 + i);
    for (int i = 0; i < 3000; i++) map->tab_bits[i] = i % 3 == 0;
    for (int i = 0; i < 3000; i++) map->tab_input_bits[i] = i % 5 == 0;
}

static void answer(modbus_t *ctx, const uint8_t *query, int length) {
    const uint8_t *pdu = query + modbus_get_header_length(ctx);
    int address = pdu[1] << 8 | pdu[2], count = pdu[3] << 8 | pdu[4];
    printf("%d %d %d\n", pdu[0], address, count);
    fflush(stdout);
    answers++;
    for (int i = 0; i < 100; i++) map->tab_registers[i] = (uint16_t)((i & 0xff) << 8 | (answers & 0xff));
    if (pdu[0] == 3 && address <= HOLE_LAST && address + count > HOLE_FIRST)
        modbus_reply_exception(ctx, query, MODBUS_EXCEPTION_ILLEGAL_DATA_ADDRESS);
    else
        modbus_reply(ctx, query, length, map);
}

static void serve_rtu(modbus_t *ctx) {
    uint8_t query[MODBUS_RTU_MAX_ADU_LENGTH];
    for (;;) {
        int length = modbus_receive(ctx, query);
        if (length > 0) answer(ctx, query, length);
    }
}

static void serve_tcp(modbus_t *ctx, int listening) {
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    fd_set all;
    FD_ZERO(&all);
    FD_SET(listening, &all);
    for (int top = listening;;) {
        fd_set ready = all;
        if (select(top + 1, &ready, NULL, NULL, NULL) < 0) exit(1);
        for (int fd = 0; fd <= top; fd++) {
            if (!FD_ISSET(fd, &ready)) continue;
            if (fd == listening) {
                int client = modbus_tcp_accept(ctx, &listening);
                FD_SET(client, &all);
                if (client > top) top = client;
                continue;
            }
            modbus_set_socket(ctx, fd);
            int length = modbus_receive(ctx, query);
            if (length > 0) answer(ctx, query, length);
            if (length < 0) close(fd), FD_CLR(fd, &all);
        }
    }
}

int main(int argc, char **argv) {
    map = modbus_mapping_new(3000, 3000, 200, 10);
    if (argc < 3 || !map) return 2;
    fill();
    if (!strcmp(argv[1], "rtu")) {
        modbus_t *ctx = modbus_new_rtu(argv[2], 19200, 'N', 8, 1);
        modbus_set_slave(ctx, atoi(argv[3]));
        if (modbus_connect(ctx) < 0) return 1;
        printf("listening 0\n");
        fflush(stdout);
        serve_rtu(ctx);
    }
    modbus_t *ctx = modbus_new_tcp("127.0.0.1", atoi(argv[2]));
    int listening = modbus_tcp_listen(ctx, 8);
    if (listening < 0) return 1;
    struct sockaddr_in name;
    socklen_t size = sizeof name;
    getsockname(listening, (struct sockaddr *)&name, &size);
    printf("listening %d\n", ntohs(name.sin_port));
    fflush(stdout);
    serve_tcp(ctx, listening);
}
