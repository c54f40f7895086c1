"""edge-runtime demo --gateways N: a mesh at work on this machine. The windows of the slow gateway are computed by the fast ones;
the gateway that hosts the broker is killed, and comes back.

| process    | what it is                                                                                |
|------------|-------------------------------------------------------------------------------------------|
| press      | a simulated PLC; every gateway polls it                                                   |
| gateway-1  | on a simulated slow board: a window takes longer than the next one needs to come          |
| gateway-2… | `edge-runtime run`                                                                        |
| broker     | a child of whichever gateway hosts it now                                                 |
| receiver   | `edge-runtime receive`: the far end                                                       |
"""
