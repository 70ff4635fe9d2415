import * as Comlink from "comlink";
import { World } from "./world";

Comlink.expose(World);
